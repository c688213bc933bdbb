//! The one offline test binary.

mod audit;
mod contracts;
mod records;
