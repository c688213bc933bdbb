//! WHAT TO DO NEXT: `plan()` and `Plan`; no async, clock, randomness or I/O.

pub mod action;
pub mod observed;
pub mod orphans;
