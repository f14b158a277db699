//! Timestamps as API objects carry them: RFC 3339, UTC, whole seconds.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Seconds since 1970.
pub fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

/// The first second that a timestamp can say: years have four digits.
const FIRST: i64 = -62_167_219_200;
/// The last one that every client can read: kube-rs's take offsets from UTC into account.
const LAST: i64 = 253_402_207_200;

/// Seconds since 1970 as a timestamp; what is beyond the years 0000 to 9999 is their end.
pub fn format(seconds: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(seconds.clamp(FIRST, LAST))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    let month = u8::from(month);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A timestamp (with or without a fraction) as seconds since 1970.
pub fn parse(text: &str) -> Option<i64> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_a_timestamp() {
        assert_eq!(format(0), "1970-01-01T00:00:00Z");
        assert_eq!(format(LAST), "9999-12-30T22:00:00Z");
        assert_eq!(format(FIRST), "0000-01-01T00:00:00Z");
        for beyond in [LAST + 1, i64::MAX] {
            assert_eq!(format(beyond), "9999-12-30T22:00:00Z");
        }
        assert_eq!(format(i64::MIN), "0000-01-01T00:00:00Z");
        assert_eq!(parse(&format(1_700_000_000)), Some(1_700_000_000));
    }
}
