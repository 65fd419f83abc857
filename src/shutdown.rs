//! From the first signal to the last byte: who is told to stop, and when.
