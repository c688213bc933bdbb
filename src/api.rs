//! WHAT IS WANTED: the records that all stores share. Data only: no effect, no clock.

pub mod address;
pub mod agent;
pub mod condition;
pub mod halt;
pub mod names;
pub mod schema;
pub mod validate;
