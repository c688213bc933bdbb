//! The one offline test binary.

#[cfg(feature = "controller")]
mod workspace;
