//! How things are told to people: sizes, numbers, times, names out of an image.

use std::borrow::Cow;
use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::tree::Time;

/// A size in binary units with at most three digits of it: `4 GiB`, `1.5 MiB`, `512 B`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    // Tenths, rounded, so that 1023.96 KiB becomes 1 MiB and not 1024.0 KiB.
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_235 && unit + 1 < UNITS.len() {
        unit += 1;
        tenths = (u128::from(bytes) * 10 + (1 << (10 * unit - 1))) >> (10 * unit);
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {name}"),
        (whole, _) if whole >= 100 => format!("{} {name}", (tenths + 5) / 10),
        (whole, part) => format!("{whole}.{part} {name}"),
    }
}

/// A number with its thousands apart: `1,234,567`.
pub(super) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count and what is counted: `1 file`, `15,000 files`.
pub(super) fn count(value: u64, one: &str, many: &str) -> String {
    format!("{} {}", number(value), if value == 1 { one } else { many })
}

fn timestamp(time: Time) -> Option<Timestamp> {
    // `Timestamp` counts nanoseconds towards zero; ours go on from the second before.
    let nanos = i32::try_from(time.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    match (time.seconds, nanos) {
        (seconds, nanos) if seconds < 0 && nanos > 0 => {
            Timestamp::new(seconds + 1, nanos - 1_000_000_000).ok()
        }
        (seconds, nanos) => Timestamp::new(seconds, nanos).ok(),
    }
}

/// A time where the reader is, to the second: `2026-11-22 02:30:00`. Years beyond 9999 come as
/// `@seconds`.
pub(super) fn local_time(time: Time, zone: &TimeZone) -> String {
    match timestamp(time) {
        Some(stamp) => zone.to_datetime(stamp).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        None => format!("@{}", time.seconds),
    }
}

/// A time in UTC, exact: `2026-11-22T02:30:00.123456789Z`. Years beyond 9999 come as
/// `@seconds.nanoseconds`.
pub(super) fn exact_time(time: Time) -> String {
    match timestamp(time) {
        Some(stamp) => stamp.to_string(),
        None => format!("@{}.{:09}", time.seconds, time.nanos),
    }
}

/// A name as a terminal may see it: nothing in it controls the terminal, and what is no text is
/// told byte by byte.
pub(super) fn printable(name: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(name) {
        Ok(text) if !text.contains(|c: char| c.is_control() || c == '\\' || is_bidi(c)) => {
            Cow::Borrowed(text)
        }
        _ => {
            let mut text = String::new();
            for chunk in name.utf8_chunks() {
                for c in chunk.valid().chars() {
                    match c {
                        '\\' => text.push_str("\\\\"),
                        '\n' => text.push_str("\\n"),
                        '\t' => text.push_str("\\t"),
                        c if c.is_ascii_control() => {
                            let _ = write!(text, "\\x{:02x}", u32::from(c));
                        }
                        c if c.is_control() || is_bidi(c) => {
                            let _ = write!(text, "\\u{{{:x}}}", u32::from(c));
                        }
                        c => text.push(c),
                    }
                }
                for byte in chunk.invalid() {
                    let _ = write!(text, "\\x{byte:02x}");
                }
            }
            Cow::Owned(text)
        }
    }
}

/// Characters that change the order in which others are shown.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Rows as lines with their columns aligned, `gap` between them; `right` says which columns are
/// numbers. No line ends in spaces.
pub(super) fn columns<const N: usize>(
    rows: &[[String; N]],
    right: [bool; N],
    gap: &str,
) -> Vec<String> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (n, ((cell, width), right)) in row.iter().zip(widths).zip(right).enumerate() {
                if n > 0 {
                    line.push_str(gap);
                }
                let padding = width - cell.chars().count();
                match right {
                    true => line.extend(std::iter::repeat_n(' ', padding).chain(cell.chars())),
                    false => line.extend(cell.chars().chain(std::iter::repeat_n(' ', padding))),
                }
            }
            line.truncate(line.trim_end().len());
            line
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_never_show_1024() {
        let cases: [(u64, &str); 10] = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1 << 32, "4 GiB"),
            ((1 << 20) - 1, "1 MiB"),
            (130 << 20, "130 MiB"),
            (1_000_000_000, "954 MiB"),
            (10_000_000_000, "9.3 GiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn numbers_have_their_thousands_apart() {
        assert_eq!(number(0), "0");
        assert_eq!(number(999), "999");
        assert_eq!(number(1_000), "1,000");
        assert_eq!(number(1_234_567), "1,234,567");
        assert_eq!(count(1, "file", "files"), "1 file");
    }

    #[test]
    fn times_before_the_epoch_and_beyond_all_calendars() {
        let zone = TimeZone::UTC;
        let time = |seconds, nanos| Time { seconds, nanos };
        assert_eq!(exact_time(time(-1, 999_999_999)), "1969-12-31T23:59:59.999999999Z");
        assert_eq!(exact_time(time(-2, 1)), "1969-12-31T23:59:58.000000001Z");
        assert_eq!(exact_time(time(0, 0)), "1970-01-01T00:00:00Z");
        assert_eq!(local_time(time(4_102_444_800, 1), &zone), "2100-01-01 00:00:00");
        assert_eq!(local_time(time(-1, 500_000_000), &zone), "1969-12-31 23:59:59");
        assert_eq!(local_time(time(i64::MAX, 0), &zone), "@9223372036854775807");
        assert_eq!(exact_time(time(i64::MIN, 7)), "@-9223372036854775808.000000007");
        assert_eq!(exact_time(time(0, u32::MAX)), "@0.4294967295");
    }

    #[test]
    fn names_cannot_reach_the_terminal() {
        assert_eq!(printable(b"plain na\xc3\xafve"), "plain na\u{ef}ve");
        assert_eq!(printable(b"a\x1b[31mb\n"), "a\\x1b[31mb\\n");
        assert_eq!(printable(b"caf\xe9\\"), "caf\\xe9\\\\");
        assert_eq!(printable("\u{9b}x\u{202e}".as_bytes()), "\\u{9b}x\\u{202e}");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["a", "1", "x"], ["long", "23", ""]].map(|row| row.map(String::from));
        assert_eq!(columns(&rows, [false, true, false], "  "), ["a      1  x", "long  23"]);
    }
}
