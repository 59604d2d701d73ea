//! Order of resource versions, pure.
//!
//! Resource versions of one kind, as one API server hands them out, are decimal numbers of any length and grow with every
//! write (KEP-5504, "comparable resource version"). Versions of different kinds are never compared here.

use std::cmp::Ordering;

/// Compares two resource versions of one kind. None: at least one of them is not a number, so nothing but equality can be told.
pub fn compare(left: &str, right: &str) -> Option<Ordering> {
    if left == right {
        return Some(Ordering::Equal);
    }
    let (left, right) = (digits(left)?, digits(right)?);
    Some(left.len().cmp(&right.len()).then_with(|| left.cmp(right)))
}

/// Whether `version` is `wanted` or a later one. Versions that are no numbers count only when they are equal.
pub fn reached(version: &str, wanted: &str) -> bool {
    compare(version, wanted).is_some_and(Ordering::is_ge)
}

/// The number without leading zeros.
fn digits(version: &str) -> Option<&str> {
    (!version.is_empty() && version.bytes().all(|b| b.is_ascii_digit())).then(|| version.trim_start_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_as_numbers() {
        assert!(reached("10", "9"));
        assert!(reached("9", "9"));
        assert!(!reached("9", "10"));
        assert!(reached("0010", "9"));
        assert!(reached(
            "340282366920938463463374607431768211457",
            "340282366920938463463374607431768211456"
        ));
    }

    #[test]
    fn what_is_no_number_is_only_ever_equal() {
        assert!(reached("abc", "abc"));
        assert!(!reached("abd", "abc"));
        assert!(!reached("", "1"));
        assert!(!reached("12", "x1"));
        assert_eq!(compare("-1", "1"), None);
    }
}
