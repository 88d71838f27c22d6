use super::*;
use crate::Request;
use crate::id::MAX_ID;

fn error_of(frame: &[u8]) -> RpcError {
    let request = Request::read(frame).map_err(|refusal| refusal.error);
    request.and_then(Request::call).unwrap_err()
}

fn refusal(frame: &[u8]) -> (ErrorKind, String) {
    let error = error_of(frame);
    (error.data.kind, error.message)
}

#[test]
fn invalid_request_gets_the_kind_of_its_error() {
    use ErrorKind::{InvalidJail, InvalidParams, InvalidRequest, ParseError, UnknownMethod};
    let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
    let mut shown = String::new();
    for (frame, kind) in [
        (&b"{"[..], ParseError),
        (b"\xff\xfe{}", ParseError),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}", ParseError),
        (deep.as_bytes(), ParseError),
        (b"7", InvalidRequest),
        (b"[]", InvalidRequest),
        (br#"{"id":1,"method":"version"}"#, InvalidRequest),
        (br#"{"jsonrpc":"2.0","id":{},"method":"version"}"#, InvalidRequest),
        (br#"{"jsonrpc":"2.0","id":1}"#, InvalidRequest),
        (br#"{"jsonrpc":"2.0","id":1,"method":"version","params":[1]}"#, InvalidRequest),
        (br#"{"jsonrpc":"2.0","id":1,"method":"make-coffee"}"#, UnknownMethod),
        (br#"{"jsonrpc":"2.0","id":1,"method":"get-agent"}"#, InvalidParams),
        (br#"{"jsonrpc":"2.0","id":1,"method":"spawn-agent","params":{"program":7}}"#, InvalidParams),
        (br#"{"jsonrpc":"2.0","id":1,"method":"spawn-agent","params":{"program":"x","jail":{"pth":"/"}}}"#, InvalidJail),
        (br#"{"jsonrpc":"2.0","id":1,"method":"spawn-agent","params":{"program":"x","jail":"web"}}"#, InvalidJail),
    ] {
        let (found, message) = refusal(frame);
        assert_eq!(found, kind, "{message}");
        shown.push_str(&format!("{} {message}\n", found.code()));
    }
    insta::assert_snapshot!(shown);
}

/// Returns the id in the answer to a frame; `None` for a notification.
fn answered_id(frame: &str) -> Option<String> {
    let id = match Request::read(frame.as_bytes()) {
        Ok(request) => request.id?,
        Err(refusal) => refusal.id,
    };
    let answer = Response::new(id, Err(RpcError::new(ErrorKind::Internal, "no")));
    let text = String::from_utf8(answer.encode().unwrap()).unwrap();
    let id = text.split("\"id\":").nth(1)?;
    Some(id.split(",\"error\"").next()?.to_owned())
}

#[test]
fn id_is_answered_as_it_was_written() {
    let valid = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"version"}}"#);
    for id in [
        "1",
        "-7",
        "0",
        "18446744073709551615",
        "18446744073709551616",
        "123456789012345678901234567890",
        "1.50",
        "1e400",
        "\"a\"",
        r#""\u00e4\n\"""#,
        "\"\"",
        "null",
    ] {
        assert_eq!(answered_id(&valid(id)).as_deref(), Some(id));
        // Also if another field of the request is invalid.
        for (wrong, kind) in [
            (
                format!(r#"{{"id":{id},"method":"version"}}"#),
                ErrorKind::InvalidRequest,
            ),
            (
                format!(r#"{{"jsonrpc":"1.0","id":{id},"method":"version"}}"#),
                ErrorKind::InvalidRequest,
            ),
            (
                format!(r#"{{"jsonrpc":"2.0","id":{id}}}"#),
                ErrorKind::InvalidRequest,
            ),
            (
                format!(r#"{{"jsonrpc":"2.0","id":{id},"method":7}}"#),
                ErrorKind::InvalidRequest,
            ),
            (
                format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"version","params":[1]}}"#),
                ErrorKind::InvalidRequest,
            ),
            (
                format!(r#"{{"jsonrpc":"2.0","method":"version","params":"x","id":{id}}}"#),
                ErrorKind::InvalidRequest,
            ),
            (
                format!(
                    r#"{{"jsonrpc":"2.0","id":{id},"method":"version","params":{{"a":"\ud800"}}}}"#
                ),
                ErrorKind::ParseError,
            ),
        ] {
            let refusal = Request::read(wrong.as_bytes()).unwrap_err();
            assert_eq!(refusal.error.data.kind, kind, "{wrong}");
            assert_eq!(answered_id(&wrong).as_deref(), Some(id), "{wrong}");
        }
    }
    let long = format!("\"{}\"", "x".repeat(MAX_ID));
    let (long, twice) = (
        valid(&long),
        r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"version"}"#,
    );
    for frame in [
        "{",
        "[]",
        "7",
        &long,
        twice,
        &valid("{}"),
        &valid("[1]"),
        &valid("true"),
    ] {
        assert_eq!(answered_id(frame).as_deref(), Some("null"), "{frame}");
    }
    assert_eq!(answered_id(r#"{"jsonrpc":"2.0","method":"version"}"#), None);
}

#[test]
fn hint_for_a_jail_names_all_its_fields() {
    let frame = br#"{"jsonrpc":"2.0","id":1,"method":"spawn-agent","params":{"jail":{"pth":"/"}}}"#;
    let error = error_of(frame);
    let hint = error.data.hint.unwrap();
    // The message of serde lists the fields of the type itself.
    let listed = error.message.split("expected one of ").nth(1).unwrap();
    let fields: Vec<&str> = listed.split('`').skip(1).step_by(2).collect();
    assert!(fields.len() >= 10, "{fields:?}");
    for field in fields {
        assert!(hint.contains(field), "{field} is not in: {hint}");
    }
}

#[test]
fn every_method_is_listed_and_reads_back() {
    let schema = serde_json::to_value(schemars::schema_for!(Call)).unwrap();
    let text = schema.to_string();
    for method in Call::METHODS {
        assert!(
            text.contains(&format!("\"const\":\"{method}\"")),
            "{method} is not a variant"
        );
    }
    assert_eq!(
        schema["oneOf"].as_array().unwrap().len(),
        Call::METHODS.len()
    );
    let call = Call::KillAgent(KillParams {
        id: "a".into(),
        signal: None,
        grace_ms: Some(5),
        escalate: true,
        no_restart: false,
    });
    assert_eq!(call.method(), "kill-agent");
    let frame = call.encode(7).unwrap();
    let request = Request::read(&frame).unwrap();
    assert_eq!(request.id, Some(7.into()));
    assert_eq!(request.call().unwrap(), call);
}

#[test]
fn unknown_fields_outside_a_jail_are_ignored() {
    let frame = br#"{"jsonrpc":"2.0","method":"spawn-agent","params":{"program":"x","colour":"red"},"extra":1}"#;
    let request = Request::read(frame).unwrap();
    assert_eq!(request.id, None);
    assert!(
        matches!(request.call().unwrap(), Call::SpawnAgent(params) if params.program.as_deref() == Some("x"))
    );
}

#[test]
fn server_message_is_parsed_in_any_field_order() {
    let removed = r#""method":"agent-removed","params":{"subscription":1,"id":"a"}"#;
    let turned = r#""params":{"subscription":1,"id":"a"},"method":"agent-removed""#;
    for (fields, expected) in [
        (format!(r#""jsonrpc":"2.0",{removed}"#), "notification"),
        (format!(r#"{turned},"jsonrpc":"2.0""#), "notification"),
        (format!(r#"{:40}{turned}"#, ""), "notification"),
        (r#""jsonrpc":"2.0","id":7,"result":{}"#.into(), "result"),
        (r#""result":{"method":7},"id":7,"jsonrpc":"2.0""#.into(), "result"),
        (r#""jsonrpc":"2.0","id":"\"method\"","result":[]"#.into(), "result"),
        (
            r#""jsonrpc":"2.0","id":7,"error":{"code":-32000,"message":"no","data":{"kind":"internal"}}"#.into(),
            "no",
        ),
        (
            r#""jsonrpc":"2.0","id":7"#.into(),
            "the answer has neither a result nor an error",
        ),
        (r#""jsonrpc":"2.0","method":"agent-danced","params":{}"#.into(), "nothing"),
        (r#""jsonrpc":"1.0","id":7,"result":{}"#.into(), "nothing"),
    ] {
        let parsed = match ServerMessage::parse(format!("{{{fields}}}").as_bytes()) {
            Ok(ServerMessage::Notification(Notification::AgentRemoved(_))) => {
                "notification".to_owned()
            }
            Ok(ServerMessage::Notification(other)) => format!("{other:?}"),
            Ok(ServerMessage::Response(response)) => match response.into_result() {
                Ok(_) => "result".to_owned(),
                Err(error) => error.message,
            },
            Err(_) => "nothing".to_owned(),
        };
        assert_eq!(parsed, expected, "{fields}");
    }
}

#[test]
fn debug_output_hides_environment_values() {
    let params = SpawnRequest {
        env: crate::Env([("TOKEN".to_owned(), "s3cret".to_owned())].into()),
        ..SpawnRequest::default()
    };
    let shown = format!("{:?}", Call::SpawnAgent(params));
    assert!(shown.contains("TOKEN") && !shown.contains("s3cret"));
}
