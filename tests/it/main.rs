//! The one offline test binary.

mod records;
