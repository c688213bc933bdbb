//! The contract of `Sandbox`: what every driver must do, whatever it is made of.

pub mod contract;
mod crash;
mod gate;
mod limits;
mod masks;
#[cfg(target_arch = "x86_64")]
mod probes;
mod process;
mod user;

pub use contract::{Subject, contract, ended, seen, spec_of, uid, until};
