//! The sample upstream and images of the `demo` command, used by the tests as well.
