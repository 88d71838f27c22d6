//! Transcript of zot's events.

use serde_json::Value;

use super::summary::content_text;
use super::{Transcript, TranscriptItem, refused_command_item, stop_item, text_line};

impl Transcript {
    pub(super) fn push_zot_event(&mut self, event: &Value, items: &mut Vec<TranscriptItem>) {
        match event["type"].as_str().unwrap_or_default() {
            "turn_start" => self.streamed = false,
            "user_message" => items.push(TranscriptItem::User(content_text(&event["content"]))),
            "text_delta" => self.push_fragment(&event["delta"], TranscriptItem::Text, items),
            "assistant_message" => self.end_message(&event["content"], items),
            "tool_call" => {
                items.push(self.tool_call(&event["id"], &event["name"], &event["args"]));
            }
            "tool_result" => {
                items.push(self.tool_result(&event["id"], &event["content"], &event["is_error"]));
            }
            "turn_end" if !event["error"].is_null() => {
                items.push(TranscriptItem::Error(text_line(&event["error"])));
            }
            "turn_end" => items.extend(stop_item(&event["stop"], &Value::Null)),
            "compact_done" => items.push(TranscriptItem::Notice("compacted its history".into())),
            "error" => items.push(TranscriptItem::Error(text_line(&event["message"]))),
            "response" if event["success"] == false => items.push(refused_command_item(event)),
            _ => {}
        }
    }
}
