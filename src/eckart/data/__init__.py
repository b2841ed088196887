"""From files and tables to integers and arrays."""
