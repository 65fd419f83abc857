//! The HTTP edge: the only home of axum and hyper.
