//! Writing frames. On the hot path: each push is encoded once.

use super::{ByteOrder, Message, PREFIX_BYTES};

/// What stands behind the backslash for each byte of a string; 0: the byte stands for itself.
const ESCAPES: [u8; 256] = {
    let mut escapes = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        escapes[byte] = b'u';
        byte += 1;
    }
    escapes[0x08] = b'b';
    escapes[0x09] = b't';
    escapes[0x0a] = b'n';
    escapes[0x0c] = b'f';
    escapes[0x0d] = b'r';
    escapes[b'"' as usize] = b'"';
    escapes[b'\\' as usize] = b'\\';
    escapes
};

/// Braces, the names of all fields, quotes, colons and commas.
const SYNTAX_BYTES: usize = r#"{"seq":,"uri":"","body":"","v":}"#.len();

/// The digits of an `i64`, and its sign.
const NUMBER_BYTES: usize = 20;

/// Appends a frame to `frame`: the prefix, then `{"seq":N,"uri":"…","body":"…"}`, in this order and without white
/// space. A `seq` of 0, an empty `uri` and an empty `body` are left out. Escaped are only `"`, `\` and what is below
/// U+0020.
///
/// # Panics
///
/// Where the message has 4 GiB or more, which no limit of the gateway allows.
pub fn encode(order: ByteOrder, seq: i64, uri: &str, body: &str, frame: &mut Vec<u8>) {
    append(order, seq, uri, body, None, frame);
}

/// As [`encode`], with the field `v` behind the others where there is one: what a device sends.
pub(crate) fn encode_message(order: ByteOrder, message: &Message<'_>, frame: &mut Vec<u8>) {
    append(order, message.seq, &message.uri, &message.body, message.v, frame);
}

fn append(order: ByteOrder, seq: i64, uri: &str, body: &str, v: Option<i64>, frame: &mut Vec<u8>) {
    let start = frame.len();
    // Enough for every message without escapes, so that it is written without growing.
    frame.reserve(PREFIX_BYTES + SYNTAX_BYTES + 2 * NUMBER_BYTES + uri.len() + body.len());
    frame.extend_from_slice(&[0; PREFIX_BYTES]);
    // Each field begins with a comma; the first one's becomes the brace.
    if seq != 0 {
        frame.extend_from_slice(br#","seq":"#);
        number(seq, frame);
    }
    if !uri.is_empty() {
        frame.extend_from_slice(br#","uri":""#);
        string(uri, frame);
        frame.push(b'"');
    }
    if !body.is_empty() {
        frame.extend_from_slice(br#","body":""#);
        string(body, frame);
        frame.push(b'"');
    }
    if let Some(v) = v {
        frame.extend_from_slice(br#","v":"#);
        number(v, frame);
    }
    match frame.get_mut(start + PREFIX_BYTES) {
        Some(comma) => *comma = b'{',
        None => frame.push(b'{'),
    }
    frame.push(b'}');
    let bytes = u32::try_from(frame.len() - start - PREFIX_BYTES).expect("a message is below 4 GiB");
    frame[start..start + PREFIX_BYTES].copy_from_slice(&order.write(bytes));
}

/// How many bytes the message of [`encode`] has, without its prefix, where `seq` has `seq_digits` digits (0: left out).
#[must_use]
pub fn message_bytes(seq_digits: usize, uri: &str, body: &str) -> usize {
    let seq = if seq_digits == 0 { 0 } else { r#""seq":,"#.len() + seq_digits };
    let uri = if uri.is_empty() { 0 } else { r#""uri":"","#.len() + string_bytes(uri) };
    let body = if body.is_empty() { 0 } else { r#""body":"","#.len() + string_bytes(body) };
    // Each field was counted with a comma, and the last has none.
    "{}".len() + (seq + uri + body).saturating_sub(1)
}

fn string_bytes(text: &str) -> usize {
    let escape = |byte: u8| match ESCAPES[usize::from(byte)] {
        0 => 1,
        b'u' => r"\u0000".len(),
        _ => r"\n".len(),
    };
    text.bytes().map(escape).sum()
}

fn string(text: &str, frame: &mut Vec<u8>) {
    let mut rest = text.as_bytes();
    while let Some(run) = rest.iter().position(|&byte| ESCAPES[usize::from(byte)] != 0) {
        frame.extend_from_slice(&rest[..run]);
        let byte = rest[run];
        match ESCAPES[usize::from(byte)] {
            b'u' => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xf)]);
                frame.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
            escape => frame.extend_from_slice(&[b'\\', escape]),
        }
        rest = &rest[run + 1..];
    }
    frame.extend_from_slice(rest);
}

fn number(value: i64, frame: &mut Vec<u8>) {
    let mut digits = [0; NUMBER_BYTES];
    let mut first = NUMBER_BYTES;
    let mut rest = value.unsigned_abs();
    loop {
        first -= 1;
        digits[first] = b'0' + u8::try_from(rest % 10).expect("a digit is below 10");
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        frame.push(b'-');
    }
    frame.extend_from_slice(&digits[first..]);
}
