//! The plan as a pure function: exhaustive over the small space, properties over the large one, the fleet, and each rule by its name.

pub mod build;
mod elsewhere;
mod exhaustive;
mod fleet;
mod handover;
mod orphans;
mod properties;
mod rules;
