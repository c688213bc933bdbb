//! The one offline test binary: everything that needs no Docker, Valkey, Kubernetes or browser.

mod contracts;
mod gates;
mod records;
mod tidy;
mod tools;
