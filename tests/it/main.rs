//! The one offline test binary.

mod contracts;
mod records;
