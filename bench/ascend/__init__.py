"""What can be said of Ascend without one: counted, emulated, and asked of MindSpore's compiler."""
