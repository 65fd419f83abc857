//! Log output: its format, its level, and where it goes.
