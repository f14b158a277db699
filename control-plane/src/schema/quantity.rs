//! Quantities (`100m`, `1.5Gi`, `2e3`) and the one way to write each: the largest suffix that
//! leaves a whole number, as the API server stores them.

/// Text that is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not even the shape.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// A number with an unknown suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// Thousand millionths, the finest that a quantity says.
const NANO: i128 = 1_000_000_000;
/// The largest quantity, in nanos.
const MOST: i128 = i64::MAX as i128 * NANO;

const DECIMAL: &[&str] = &["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
const BINARY: &[&str] = &["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Decimal,
    Binary,
    Exponent,
}

/// The quantity as it is stored.
pub fn canonical(text: &str) -> Result<String, QuantityError> {
    let (nanos, style) = parse(text.trim())?;
    Ok(match style {
        // Small binary quantities are written as plain numbers.
        Style::Binary if nanos.abs() >= 1024 * NANO => {
            let whole = nanos / NANO + i128::from(nanos % NANO > 0);
            let (number, power) = reduce(whole, 1024, BINARY.len() - 1);
            format!("{number}{}", BINARY[power])
        }
        Style::Exponent => {
            let (number, power) = reduce(nanos, 1000, DECIMAL.len() - 1);
            match 3 * i64::try_from(power).unwrap_or(0) - 9 {
                0 => number.to_string(),
                exponent => format!("{number}e{exponent}"),
            }
        }
        Style::Decimal | Style::Binary => {
            let (number, power) = reduce(nanos, 1000, DECIMAL.len() - 1);
            format!("{number}{}", DECIMAL[power])
        }
    })
}

/// The amount in thousand millionths, rounded up; `None` if `text` is no quantity.
pub fn nanos(text: &str) -> Option<i128> {
    parse(text.trim()).ok().map(|(nanos, _)| nanos)
}

/// Takes factors out of a number, at most so many; how many there were.
fn reduce(mut number: i128, factor: i128, most: usize) -> (i128, usize) {
    if number == 0 {
        // Nothing of anything: the suffix for one.
        return (0, if factor == 1000 { 3 } else { 0 });
    }
    let mut power = 0;
    while power < most && number % factor == 0 {
        number /= factor;
        power += 1;
    }
    (number, power)
}

fn parse(text: &str) -> Result<(i128, Style), QuantityError> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = || whole.bytes().chain(fraction.bytes());
    if digits().next().is_none() || fraction.contains('.') {
        return Err(QuantityError::Format);
    }
    let known = |c: char| "eEinumkKMGTP+-".contains(c) || c.is_ascii_digit();
    if !suffix.chars().all(known) {
        return Err(QuantityError::Format);
    }
    let (multiplier, exponent, style) = unit(suffix).ok_or(QuantityError::Suffix)?;
    let mut mantissa: i128 = 0;
    for digit in digits() {
        let next = mantissa.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
        mantissa = next.min(i128::MAX / 10);
    }
    // Rounded away from zero where nanos are not fine enough.
    let shift = exponent + 9 - i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let scaled = mantissa.saturating_mul(multiplier);
    let nanos = match u32::try_from(shift) {
        Ok(up) => scaled.saturating_mul(10_i128.saturating_pow(up)),
        Err(_) => match 10_i128.checked_pow(shift.unsigned_abs()) {
            Some(by) => scaled / by + i128::from(scaled % by > 0),
            None => i128::from(scaled > 0),
        },
    };
    let nanos = nanos.min(MOST);
    Ok((if negative { -nanos } else { nanos }, style))
}

/// Binary multiplier, decimal exponent and style of a suffix.
fn unit(suffix: &str) -> Option<(i128, i32, Style)> {
    if let Some(power) = DECIMAL.iter().position(|known| *known == suffix) {
        return Some((1, 3 * i32::try_from(power).ok()? - 9, Style::Decimal));
    }
    if let Some(power) = BINARY.iter().position(|known| *known == suffix) {
        return Some((1024_i128.pow(u32::try_from(power).ok()?), 0, Style::Binary));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let exponent: i32 = exponent.parse().ok().filter(|number| (-30..=30).contains(number))?;
    Some((1, exponent, Style::Exponent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_one_way_to_write_a_quantity() {
        for (text, expected) in [
            ("1", "1"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0", "0"),
            ("0Mi", "0"),
            ("1000", "1k"),
            ("128Mi", "128Mi"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("134217728", "134217728"),
            ("1e3", "1e3"),
            ("12E0", "12"),
            ("-1", "-1"),
            ("+5k", "5k"),
            ("0.0000000001", "1n"),
            (".5", "500m"),
            ("5.", "5"),
            ("100000000000000000000", "9223372036854775807"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity() {
        for text in ["", "x", "1 Gi", "1.2.3", "-", "Gi", "1b"] {
            assert_eq!(canonical(text), Err(QuantityError::Format), "{text}");
        }
        for text in ["1KiB", "1mm", "1e", "1Mii", "1ki"] {
            assert!(canonical(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn canonical_is_a_fixed_point(text in "[-+]?[0-9]{1,9}(\\.[0-9]{1,4})?(n|u|m|k|M|G|Ki|Mi|Gi|e3|)") {
            let once = canonical(&text).unwrap();
            let again = canonical(&once).unwrap();
            if text.ends_with('i') && !once.ends_with('i') {
                // Of no power of 1024, and so written without a suffix, which is read as decimal.
                prop_assert_eq!(nanos(&again), nanos(&once));
            } else {
                prop_assert_eq!(again, once.clone());
            }
            let (before, after) = (nanos(&text).unwrap(), nanos(&once).unwrap());
            // Binary quantities are whole.
            let whole = text.ends_with('i') && before.abs() >= 1024 * NANO;
            let up = (before / NANO + i128::from(before % NANO > 0)) * NANO;
            prop_assert_eq!(after, if whole { up } else { before });
        }
    }
}
