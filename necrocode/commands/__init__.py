"""The verbs of the command line, one a file. Each has a `command`, made by `necrocode.door.verb`."""
