//! Every number that has a symbol, and some years.

use roman::to_roman;

/// Every number that has a symbol or a pair of its own.
const BASIC: &[(u16, &str)] = &[
    (1, "I"),
    (4, "IV"),
    (5, "V"),
    (9, "IX"),
    (10, "X"),
    (40, "XL"),
    (50, "L"),
    (90, "XC"),
    (100, "C"),
    (400, "CD"),
    (500, "D"),
    (900, "CM"),
    (1000, "M"),
];

#[test]
fn basic_numbers() {
    let is_wrong = |(number, roman): &&(u16, &str)| to_roman(*number) != *roman;
    let wrong: Vec<String> = BASIC
        .iter()
        .filter(is_wrong)
        .map(|(number, roman)| format!("wrong: {number} is {roman}, not {}", to_roman(*number)))
        .collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn years() {
    assert_eq!(to_roman(1066), "MLXVI");
    assert_eq!(to_roman(1994), "MCMXCIV");
    assert_eq!(to_roman(2026), "MMXXVI");
    assert_eq!(to_roman(3888), "MMMDCCCLXXXVIII");
}
