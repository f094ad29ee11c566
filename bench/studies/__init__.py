"""What can be asked beside the table's rows: full sizes, known mistakes, codecs."""
