use std::borrow::Cow;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn encoded(order: ByteOrder, seq: i64, uri: &str, body: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    encode(order, seq, uri, body, &mut frame);
    frame
}

/// The message of a push as text, its prefix checked.
fn written(seq: i64, uri: &str, body: &str) -> String {
    let frame = encoded(ByteOrder::Big, seq, uri, body);
    assert_eq!(split(ByteOrder::Big, usize::MAX, &frame).unwrap(), Some(PREFIX_BYTES..frame.len()));
    String::from_utf8(frame[PREFIX_BYTES..].to_vec()).unwrap()
}

#[track_caller]
fn reads(text: &str, seq: i64, uri: &str, body: &str, v: Option<i64>) {
    let message = Message { seq, uri: uri.into(), body: body.into(), v };
    assert_eq!(parse(text.as_bytes()), Ok(Some(message)), "{text}");
}

#[track_caller]
fn refuses(message: &[u8]) {
    let error = parse(message).expect_err(&String::from_utf8_lossy(message));
    assert!(error.to_string().len() < 200, "{error}");
}

#[test]
fn a_frame_is_a_length_and_json() {
    let mut frame = vec![0xee];
    encode(ByteOrder::Big, 7, "/a", "hi", &mut frame);
    let message = br#"{"seq":7,"uri":"/a","body":"hi"}"#;
    // what stood there · 32 in big-endian · the message
    assert_eq!(frame, [&[0xee, 0x00, 0x00, 0x00, 0x20], &message[..]].concat());
    // 32 in little-endian
    let frame = encoded(ByteOrder::Little, 7, "/a", "hi");
    assert_eq!(frame, [&[0x20, 0x00, 0x00, 0x00], &message[..]].concat());
}

#[test]
fn zero_and_empty_fields_are_left_out() {
    assert_eq!(written(0, "/heartbeat", ""), r#"{"uri":"/heartbeat"}"#);
    assert_eq!(written(0, "", "b"), r#"{"body":"b"}"#);
    assert_eq!(written(5, "", ""), r#"{"seq":5}"#);
    assert_eq!(written(0, "", ""), "{}");
}

#[test]
fn every_number_is_written_whole() {
    assert_eq!(written(i64::MIN, "", ""), r#"{"seq":-9223372036854775808}"#);
    assert_eq!(written(i64::MAX, "", ""), r#"{"seq":9223372036854775807}"#);
    assert_eq!(written(-10, "", ""), r#"{"seq":-10}"#);
}

#[test]
fn only_quotes_backslashes_and_controls_are_escaped() {
    assert_eq!(
        written(0, "", "\"\\/\u{8}\t\n\u{c}\r\u{0}\u{b}\u{1f}\u{7f}<>&ä\u{2028}🦀"),
        "{\"body\":\"\\\"\\\\/\\b\\t\\n\\f\\r\\u0000\\u000b\\u001f\u{7f}<>&ä\u{2028}🦀\"}"
    );
}

#[test]
fn a_devices_message_has_its_dialect_last() {
    let mut frame = Vec::new();
    let message = Message { uri: "/auth/server".into(), body: "me".into(), v: Some(2), ..Message::default() };
    encode_message(ByteOrder::Big, &message, &mut frame);
    assert_eq!(&frame[PREFIX_BYTES..], br#"{"uri":"/auth/server","body":"me","v":2}"#);
}

#[test]
fn a_length_over_the_limit_is_told_with_its_fourth_byte() {
    let order = ByteOrder::Big;
    assert_eq!(split(order, 10, &[0xff, 0xff, 0xff]), Ok(None));
    assert_eq!(split(order, 10, &[0, 0, 0, 11]), Err(TooLarge { bytes: 11, bytes_max: 10 }));
    assert_eq!(split(order, 10, &[0, 0, 0, 10]), Ok(None));
    assert_eq!(split(ByteOrder::Little, 10, &[1, 0, 0, 0, b'x', b'y']), Ok(Some(4..5)));
    assert_eq!(split(order, 10, &[0, 0, 0, 0]), Ok(Some(4..4)));
    let largest = split(order, 10, &[0xff; 4]).unwrap_err();
    assert_eq!(largest.to_string(), "a frame of 4294967295 bytes, at most 10 are allowed");
}

#[test]
fn nothing_and_null_have_no_content() {
    for empty in ["", "null", " \t\r\nnull\n"] {
        assert_eq!(parse(empty.as_bytes()), Ok(None), "{empty:?}");
    }
    for no_object in [" ", "nul", "nullnull", "[]", "\"\"", "1", "true", "\u{a0}null", "\u{feff}{}"] {
        refuses(no_object.as_bytes());
    }
}

#[test]
fn missing_fields_are_zero_and_unknown_ones_ignored() {
    reads("{}", 0, "", "", None);
    reads(r#" { "uri" : "/a" , "x":[{"seq":"no"}], "":1e999, "vv":2 } "#, 0, "/a", "", None);
}

#[test]
fn field_names_count_in_any_case_as_gos_library_folds_them() {
    reads(r#"{"SEQ":1,"Uri":"/a","bODY":"b","V":2}"#, 1, "/a", "b", Some(2));
    reads(r#"{"ſeq":1,"\u0075ri":"/a"}"#, 1, "/a", "", None);
    reads(r#"{"\u017fEQ":3}"#, 3, "", "", None);
    reads(r#"{"urı":1,"seq ":"x","ſſeq":"x","ſ":"x","éeq":""}"#, 0, "", "", None);
}

#[test]
fn the_last_of_a_field_counts_and_each_must_have_its_type() {
    reads(r#"{"seq":1,"SEQ":2,"uri":"/a","Uri":"/b"}"#, 2, "/b", "", None);
    reads(r#"{"uri":"/a","uri":""}"#, 0, "", "", None);
    refuses(br#"{"seq":"1","seq":2}"#);
    refuses(br#"{"uri":"/a","URI":5}"#);
}

#[test]
fn null_leaves_what_was_there() {
    reads(r#"{"seq":1,"seq":null,"uri":"/a","Uri":null,"body":null,"v":2,"v":null}"#, 1, "/a", "", Some(2));
}

#[test]
fn seq_is_an_integer_of_64_bits() {
    reads(r#"{"seq":-0}"#, 0, "", "", None);
    reads(r#"{"seq":9223372036854775807}"#, i64::MAX, "", "", None);
    reads(r#"{"seq":-9223372036854775808}"#, i64::MIN, "", "", None);
    for wrong in ["1.0", "1e3", "9223372036854775808", "\"1\"", "true", "[]", "{}", "01", "+1", "1e999", "-"] {
        refuses(format!(r#"{{"seq":{wrong}}}"#).as_bytes());
    }
    assert_eq!(parse(br#"{"seq":1.0}"#).unwrap_err().to_string(), "seq is not an integer of 64 bits");
}

#[test]
fn uri_and_body_are_strings() {
    for wrong in ["1", "true", "[\"\"]", "{}", "1e999", "'a'", "\"\t\"", r#""\q""#, r#""\u12""#, "\""] {
        refuses(format!(r#"{{"uri":{wrong}}}"#).as_bytes());
        refuses(format!(r#"{{"body":{wrong}}}"#).as_bytes());
    }
    assert_eq!(parse(br#"{"body":[1]}"#).unwrap_err().to_string(), "body is not a string");
}

#[test]
fn a_v_that_is_no_integer_is_as_if_it_were_not_there() {
    for missing in ["2.0", "\"2\"", "[2]", "{}", "true", "9223372036854775808", "1e1"] {
        reads(&format!(r#"{{"uri":"/a","v":{missing}}}"#), 0, "/a", "", None);
        reads(&format!(r#"{{"v":2,"v":{missing}}}"#), 0, "", "", Some(2));
    }
    reads(r#"{"v":-3}"#, 0, "", "", Some(-3));
}

#[test]
fn what_is_no_json_is_refused_wherever_it_stands() {
    for wrong in [
        &br#"{"uri":"/a"}x"#[..],
        br#"{"uri":"/a"} {}"#,
        br#"{"uri":"/a""#,
        br#"{"uri":"/a",}"#,
        br#"{uri:"/a"}"#,
        b"{\"x\":\"\xff\"}",
        b"{\"\xc3\x28\":1}",
        // A surrogate in UTF-8.
        b"{\"x\":\"\xed\xa0\x80\"}",
        br#"{"x":nul}"#,
        br#"{"x":[}"#,
        br#"{"x":01}"#,
        b"{\"uri\":\"/a\"}\0",
        br#"\"#,
        br#"{\"#,
        br#"{"x":"\"#,
    ] {
        refuses(wrong);
    }
}

#[test]
fn a_lone_surrogate_is_refused_wherever_it_stands() {
    for lone in [
        r"\ud800",
        r"\udbff",
        r"\udc00",
        r"\uDFFF",
        r"\ud83e",
        r"\ud83ex\udd80",
        r"\ud83e\ud83e\udd80",
        r"\udd80\ud83e",
        r"\ud83e\n",
        r"\ud83e\\udd80",
        r"\\\ud83e",
    ] {
        refuses(format!(r#"{{"body":"{lone}"}}"#).as_bytes());
        refuses(format!(r#"{{"x":[{{"y":"{lone}"}}]}}"#).as_bytes());
        refuses(format!(r#"{{"{lone}":1}}"#).as_bytes());
    }
    reads(r#"{"body":"\ud83e\uDD80 \\ud800 \\\\ud800"}"#, 0, "", r"🦀 \ud800 \\ud800", None);
}

#[test]
fn depth_is_bounded_by_the_frame_alone() {
    let depth = 30_000;
    let deep = format!(r#"{{"x":{}{},"uri":"/a"}}"#, "[".repeat(depth), "]".repeat(depth));
    reads(&deep, 0, "/a", "", None);
    let objects = format!(r#"{{"v":{}1{},"uri":"/a"}}"#, r#"{"v":"#.repeat(depth), "}".repeat(depth));
    reads(&objects, 0, "/a", "", None);
}

#[test]
fn a_message_without_escapes_is_borrowed() {
    let message = parse(br#"{"uri":"/a","body":"b"}"#).unwrap().unwrap();
    assert!(matches!(message, Message { uri: Cow::Borrowed("/a"), body: Cow::Borrowed("b"), .. }));
    let message = parse(br#"{"uri":"\/a","body":"b\n"}"#).unwrap().unwrap();
    assert_eq!((&*message.uri, &*message.body), ("/a", "b\n"));
}

/// Any JSON, with the known names among its fields.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "(?s).{0,12}".prop_map(Value::from),
    ];
    let name = || prop_oneof!["seq|SEQ|Seq|uri|URI|body|Body|v|V", "(?s).{0,4}"];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((name(), inner), 0..6).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// What [`parse`] has to make of `value`: `Err(())` where a field has the wrong type. For objects in which each field
/// stands once, since a `Value` keeps one of two.
fn expected(value: &Value) -> Result<Option<Message<'static>>, ()> {
    let fields = match value {
        Value::Null => return Ok(None),
        Value::Object(fields) => fields,
        _ => return Err(()),
    };
    let mut message = Message::default();
    for (name, value) in fields {
        let text = || value.as_str().map(|text| Cow::Owned(text.to_owned())).ok_or(());
        match name.to_lowercase().as_str() {
            _ if value.is_null() => {}
            "seq" => message.seq = value.as_i64().ok_or(())?,
            "uri" => message.uri = text()?,
            "body" => message.body = text()?,
            "v" => message.v = value.as_i64(),
            _ => {}
        }
    }
    Ok(Some(message))
}

fn has_each_field_once(value: &Value) -> bool {
    let Value::Object(fields) = value else { return true };
    let mut names: Vec<_> = fields.keys().map(|name| name.to_lowercase()).collect();
    names.sort_unstable();
    names.windows(2).all(|pair| pair[0] != pair[1])
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        seq in any::<i64>(),
        uri in "(?s).{0,40}",
        body in "(?s)[\\x00-\\x7f]{0,60}|.{0,60}",
        little in any::<bool>(),
    ) {
        let order = if little { ByteOrder::Little } else { ByteOrder::Big };
        let frame = encoded(order, seq, &uri, &body);
        let range = split(order, usize::MAX, &frame).unwrap().unwrap();
        prop_assert_eq!(range.end, frame.len());
        prop_assert_eq!(split(order, usize::MAX, &frame[..frame.len() - 1]).unwrap(), None);
        let message = &frame[range];
        let read = parse(message).unwrap().unwrap();
        prop_assert_eq!(read, Message { seq, uri: uri.as_str().into(), body: body.as_str().into(), v: None });
        // serde_json reads the same, and its own text of each string has the same length.
        let mut value = json!({});
        if seq != 0 { value["seq"] = seq.into(); }
        if !uri.is_empty() { value["uri"] = uri.as_str().into(); }
        if !body.is_empty() { value["body"] = body.as_str().into(); }
        prop_assert_eq!(serde_json::from_slice::<Value>(message).unwrap(), value.clone());
        prop_assert_eq!(message.len(), serde_json::to_vec(&value).unwrap().len());
        let digits = if seq == 0 { 0 } else { seq.to_string().len() };
        prop_assert_eq!(message.len(), message_bytes(digits, &uri, &body));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = parse(&bytes);
        let _ = split(ByteOrder::Big, 50, &bytes);
    }

    #[test]
    fn nothing_near_to_json_makes_it_panic(text in r#"([{}\[\]":,\\ud89cnseqvl0.-]|\\u|"seq":|"v":){0,40}"#) {
        if let Err(error) = parse(text.as_bytes()) {
            prop_assert!(error.to_string().len() < 200);
        } else {
            // What is read is JSON for serde_json too.
            prop_assert!(text.is_empty() || serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "{text}");
        }
    }

    #[test]
    fn json_is_read_as_serde_json_reads_it(value in any_json()) {
        prop_assume!(has_each_field_once(&value));
        let text = serde_json::to_string_pretty(&value).unwrap();
        prop_assert_eq!(parse(text.as_bytes()).map_err(|_| ()), expected(&value), "{}", text);
    }
}
