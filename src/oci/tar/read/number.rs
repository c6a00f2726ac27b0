//! Numbers, as headers and extended headers write them.

use crate::tree::Time;

/// The number in a field of a header: octal digits among spaces and zero bytes, or, with the highest
/// bit set, what is left of the field as one big-endian number in two's complement (GNU tar, star).
/// A field without digits is 0, as in Seventh Edition tars.
pub(super) fn field(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => binary(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let digits = field.get(start..).unwrap_or_default();
    // What lies behind the digits and the blank that ends them is anybody's.
    let len = digits.iter().position(is_blank).unwrap_or(digits.len());
    digits.get(..len).unwrap_or_default().iter().try_fold(0_i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn binary(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    // Bit 6 of the first byte is the sign, and stands for all bits above it.
    let start = if first & 0x40 == 0 { i64::from(first & 0x3f) } else { i64::from(first) - 0x100 };
    rest.iter().try_fold(start, |value, &byte| value.checked_mul(256)?.checked_add(i64::from(byte)))
}

/// A decimal number that fills `text`.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Seconds since 1970 as a decimal fraction, with a sign before it if negative; digits beyond
/// nanoseconds are left out.
pub(super) fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let point = text.iter().position(|&byte| byte == b'.').unwrap_or(text.len());
    let (whole, fraction) = text.split_at(point);
    let whole = i64::try_from(decimal(whole)?).ok()?;
    let digits = fraction.get(1..).unwrap_or_default();
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = digits.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanos = digits.fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
    match (negative, nanos) {
        (false, nanos) => Some(Time { seconds: whole, nanos }),
        (true, 0) => Some(Time { seconds: -whole, nanos: 0 }),
        // Nanoseconds count on from the second before.
        (true, nanos) => Some(Time { seconds: -whole - 1, nanos: 1_000_000_000 - nanos }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        for (text, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"\0\0  17 \0", Some(0o17)),
            (b"77777777", Some(0o77_777_777)),
            (b"12\x00999", Some(0o12)),
            (b"12 zzz", Some(0o12)),
            (b"", Some(0)),
            (b"        ", Some(0)),
            (b"\0\0\0\0", Some(0)),
            (b"00008", None),
            (b"-1", None),
            (b"0x1", None),
            (b"777777777777777777777", Some(i64::MAX)),
            (b"1000000000000000000000", None),
            (b"\x80\0\0\0\0\0\x01\x02", Some(0x102)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff", Some(0x3fff_ffff_ffff_ffff)),
            (b"\xc0\0\0\0\0\0\0\0", Some(-0x4000_0000_0000_0000)),
        ] {
            assert_eq!(field(text), value, "{:?}", text.escape_ascii().to_string());
        }
    }

    #[test]
    fn decimals() {
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        for text in [&b"18446744073709551616"[..], b"", b"-1", b"+1", b" 1", b"1 ", b"1.0", b"0x"] {
            assert_eq!(decimal(text), None, "{text:?}");
        }
    }

    #[test]
    fn times() {
        for (text, seconds, nanos) in [
            (&b"0"[..], 0, 0),
            (b"1.5", 1, 500_000_000),
            (b"1.", 1, 0),
            (b"1.123456789", 1, 123_456_789),
            (b"1.1234567899", 1, 123_456_789),
            (b"-1", -1, 0),
            (b"-0.25", -1, 750_000_000),
            (b"-1.000000001", -2, 999_999_999),
            (b"-0.0000000001", 0, 0),
            (b"9223372036854775807.9", i64::MAX, 900_000_000),
            (b"-9223372036854775807.9", i64::MIN, 100_000_000),
        ] {
            let text_ = text.escape_ascii().to_string();
            assert_eq!(time(text), Some(Time { seconds, nanos }), "{text_}");
        }
        for text in [
            &b""[..],
            b".5",
            b"-",
            b"1,5",
            b"1.5.5",
            b"1e3",
            b"--1",
            b"9223372036854775808",
            b"nan",
        ] {
            assert_eq!(time(text), None, "{text:?}");
        }
    }
}
