//! The transcript of zot's events.

use serde_json::Value;

use super::words::content;
use super::{Item, Transcript, line};

impl Transcript {
    pub(super) fn zot(&mut self, event: &Value, items: &mut Vec<Item>) {
        match event["type"].as_str().unwrap_or_default() {
            "turn_start" => self.streamed = false,
            "user_message" => items.push(Item::User(content(&event["content"]))),
            "text_delta" => self.streams(&event["delta"], Item::Text, items),
            "assistant_message" => self.said(&event["content"], items),
            "tool_call" => {
                let call = self.called(&event["id"], &event["name"], &event["args"]);
                items.push(call);
            }
            "tool_result" => {
                items.push(self.returned(&event["id"], &event["content"], &event["is_error"]));
            }
            "turn_end" => match event["stop"].as_str().unwrap_or_default() {
                _ if !event["error"].is_null() => items.push(Item::Error(line(&event["error"]))),
                "error" => items.push(Item::Error(line(&Value::Null))),
                "aborted" => items.push(Item::Notice("aborted".into())),
                "length" => items.push(Item::Notice("the answer was cut: it was too long".into())),
                _ => {}
            },
            "compact_done" => items.push(Item::Notice("compacted its history".into())),
            "error" => items.push(Item::Error(line(&event["message"]))),
            "response" if event["success"] == false => {
                let (command, error) = (line(&event["command"]), line(&event["error"]));
                items.push(Item::Error(format!("{command}: {error}")));
            }
            _ => {}
        }
    }
}
