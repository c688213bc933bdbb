//! Roman numerals.

/// Writes a number from 1 to 3999 as a Roman numeral.
pub fn to_roman(_number: u16) -> String {
    String::new()
}
