"""Many callers against one server over the phone door: `bench_load.py` is the program, these are its parts."""
