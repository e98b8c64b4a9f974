"""The records, positions, ids and codes that all services share. Pure: no I/O, and no import of other packages here."""
