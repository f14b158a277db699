//! Times and durations between protobuf's and JSON's forms.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Whether `text` is a time as RFC 3339 writes it.
pub(super) fn is_time(text: &str) -> bool {
    OffsetDateTime::parse(text, &Rfc3339).is_ok()
}

/// A time in JSON: seconds, or with the six digits of a `MicroTime`.
pub(super) fn text(seconds: i64, nanos: i32, micro: bool) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    let (date, clock) = (at.date(), at.time());
    let fraction = if micro { format!(".{:06}", nanos / 1000) } else { String::new() };
    Some(format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}{fraction}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    ))
}

/// A duration of nanoseconds as Go writes whole seconds (`1h2m3s`), and the rest in nanoseconds.
pub(super) fn duration(nanos: i64) -> String {
    let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    if nanos == 0 {
        return "0s".to_owned();
    }
    if rest != 0 {
        return format!("{nanos}ns");
    }
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(text(0, 0, false).unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(text(1_700_000_000, 1_234_000, true).unwrap(), "2023-11-14T22:13:20.001234Z");
        assert!(is_time("2023-11-14T22:13:20.001234Z") && !is_time("yesterday"));
        assert_eq!(duration(90_000_000_000), "1m30s");
        assert_eq!(duration(5), "5ns");
    }
}
