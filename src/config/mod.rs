//! What the operator wrote becomes what the program may rely on.
