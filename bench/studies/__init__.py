"""What was asked once and can be asked again: full sizes, known mistakes, codecs. None is a row of the table."""
