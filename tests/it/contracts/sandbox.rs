//! The contract of `Sandbox`: what every driver must do, whatever it is made of.

#[cfg(target_arch = "x86_64")]
pub mod baits;
pub mod contract;
mod crash;
mod gate;
mod limits;
mod masks;
#[cfg(target_arch = "x86_64")]
mod probes;
mod process;
mod user;

pub use contract::{PATIENCE, Subject, contract, ended, seen, spec_of, uid, until};
