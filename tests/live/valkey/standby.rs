//! Stub to fill.
