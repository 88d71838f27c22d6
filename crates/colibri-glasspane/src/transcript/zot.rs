//! Transcript of zot's events.

use serde_json::Value;

use super::summary::content_text;
use super::{Transcript, TranscriptItem};

impl Transcript {
    pub(super) fn push_zot_event(&mut self, event: &Value) {
        match event["type"].as_str().unwrap_or_default() {
            "turn_start" => self.streamed = false,
            "user_message" => {
                let text = content_text(&event["content"]);
                self.items.push(TranscriptItem::User(text));
            }
            "text_delta" => self.push_fragment(&event["delta"], TranscriptItem::Text),
            "assistant_message" => self.end_message(&event["content"]),
            "tool_call" => self.push_tool_call(&event["id"], &event["name"], &event["args"]),
            "tool_result" => {
                self.push_tool_result(&event["id"], &event["content"], &event["is_error"]);
            }
            "turn_end" if !event["error"].is_null() => self.error(&event["error"]),
            "turn_end" => self.push_stop(&event["stop"], &Value::Null),
            "compact_done" => self.notice("compacted its history"),
            "error" => self.error(&event["message"]),
            "response" if event["success"] == false => self.push_refusal(event),
            _ => {}
        }
    }
}
