//! Parsing and validation of requests.

use colibri_jail_core::JailConfig;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::id::{MAX_ID, RequestId};
use crate::{Call, ErrorKind, RpcError};

/// A request whose method and parameters have not been validated.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// ID of the request; absent if the caller wants no answer.
    pub id: Option<RequestId>,
    method: String,
    params: Value,
}

/// The error answer to a frame that is not a valid request.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestRefusal {
    /// ID of the request; null if it cannot be read.
    pub id: RequestId,
    /// The error.
    pub error: RpcError,
}

/// The fields of a request as raw JSON.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(default, borrow, deserialize_with = "present")]
    jsonrpc: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    method: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    params: Option<&'a RawValue>,
}

/// Deserializes a present field, so that null differs from an absent field.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

fn invalid(message: &str) -> RpcError {
    RpcError::new(ErrorKind::InvalidRequest, message)
        .hint("send {\"jsonrpc\":\"2.0\",\"id\":…,\"method\":…,\"params\":{…}}")
}

fn not_json(error: &serde_json::Error) -> RpcError {
    RpcError::new(ErrorKind::ParseError, format!("frame is not JSON: {error}"))
        .hint("send one JSON object in UTF-8 per line, nested at most 127 levels deep")
}

/// Returns the error for a frame that cannot be deserialized as a request.
fn not_an_object(frame: &[u8]) -> RpcError {
    match serde_json::from_slice(frame) {
        Err(error) => not_json(&error),
        Ok(Value::Array(_)) => invalid("batches are not supported; send one request per line"),
        Ok(Value::Object(_)) => invalid("a field of the request occurs twice"),
        Ok(_) => invalid("a request is a JSON object"),
    }
}

impl Request {
    /// Parses a frame.
    ///
    /// # Errors
    /// The frame is not JSON, or not a valid request: the answer to send, with the id of the request if it can be read.
    pub fn read(frame: &[u8]) -> Result<Self, RequestRefusal> {
        let refusal = |id: Option<RequestId>, error| RequestRefusal {
            id: id.unwrap_or_else(RequestId::null),
            error,
        };
        // serde would deserialize an array as the fields in order.
        if frame.trim_ascii_start().first() != Some(&b'{') {
            return Err(refusal(None, not_an_object(frame)));
        }
        let fields: Fields<'_> =
            serde_json::from_slice(frame).map_err(|_| refusal(None, not_an_object(frame)))?;
        let id = match fields.id {
            Some(raw) => Some(RequestId::of(raw).ok_or_else(|| {
                let message =
                    format!("\"id\" must be a number, a text or null, of at most {MAX_ID} bytes");
                refusal(None, invalid(&message))
            })?),
            None => None,
        };
        match Self::method_and_params(&fields) {
            Ok((method, params)) => Ok(Self { id, method, params }),
            Err(error) => Err(refusal(id, error)),
        }
    }

    fn method_and_params(fields: &Fields<'_>) -> Result<(String, Value), RpcError> {
        let text = |field: Option<&RawValue>| serde_json::from_str::<String>(field?.get()).ok();
        if text(fields.jsonrpc).as_deref() != Some("2.0") {
            return Err(invalid("\"jsonrpc\" must be \"2.0\""));
        }
        let Some(method) = text(fields.method) else {
            return Err(invalid("\"method\" must be a string"));
        };
        let params = fields.params.map_or("null", RawValue::get);
        match serde_json::from_str(params) {
            Ok(Value::Null) => Ok((method, json!({}))),
            Ok(params @ Value::Object(_)) => Ok((method, params)),
            Ok(_) => Err(invalid("\"params\" must be an object")),
            Err(error) => Err(not_json(&error)),
        }
    }

    /// Returns the name of the method if it exists.
    #[must_use]
    pub fn known_method(&self) -> Option<&'static str> {
        let mut methods = Call::METHODS.iter().copied();
        methods.find(|method| *method == self.method)
    }

    /// Parses the method and its parameters.
    ///
    /// # Errors
    /// The method does not exist, or the parameters are invalid.
    pub fn call(self) -> Result<Call, RpcError> {
        if self.known_method().is_none() {
            let shown: String = self.method.chars().take(60).collect();
            let message = format!("unknown method {shown:?}");
            let hint = format!("known methods: {}", Call::METHODS.join(", "));
            return Err(RpcError::new(ErrorKind::UnknownMethod, message).hint(hint));
        }
        if let Some(jail) = self.params.get("jail").filter(|jail| !jail.is_null())
            && let Err(error) = JailConfig::deserialize(jail)
        {
            let hint = format!("a jail has the fields {}", jail_fields().join(", "));
            let error = RpcError::new(ErrorKind::InvalidJail, format!("jail: {error}"));
            return Err(error.hint(hint));
        }
        let method = self.method;
        let call = Map::from_iter([
            ("method".to_owned(), Value::from(method.as_str())),
            ("params".to_owned(), self.params),
        ]);
        serde_json::from_value(Value::Object(call))
            .map_err(|error| RpcError::new(ErrorKind::InvalidParams, format!("{method}: {error}")))
    }
}

/// Returns the field names of a jail from its schema, which a test compares with the type.
fn jail_fields() -> Vec<String> {
    let schema = schemars::schema_for!(colibri_jail_core::JailConfig);
    let fields = schema.get("properties").and_then(Value::as_object);
    fields.map_or_else(Vec::new, |fields| fields.keys().cloned().collect())
}
