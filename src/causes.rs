//! Errors for people: the error and what caused it, as one line.

use std::error::Error;

/// An error with its causes: `failed to open the store: permission denied`.
#[must_use]
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
