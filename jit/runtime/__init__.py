"""What compiled programs need at run time: machine code, its cache, and the launch."""
