//! Bundles as a whole, over a store in a folder.
