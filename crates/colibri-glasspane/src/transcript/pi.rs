//! The transcript of pi's events.

use serde_json::Value;

use super::words::content;
use super::{Item, Question, Transcript, line};
use crate::clean;
use crate::events::pi::DIALOGUES;

impl Transcript {
    pub(super) fn pi(&mut self, event: &Value, items: &mut Vec<Item>) {
        match event["type"].as_str().unwrap_or_default() {
            "message_start" if event["message"]["role"] == "assistant" => self.streamed = false,
            "message_update" => self.update(&event["assistantMessageEvent"], items),
            "message_end" => self.message(&event["message"], items),
            "tool_execution_start" => {
                let call = self.called(&event["toolCallId"], &event["toolName"], &event["args"]);
                items.push(call);
            }
            "tool_execution_end" => {
                let content = &event["result"]["content"];
                items.push(self.returned(&event["toolCallId"], content, &event["isError"]));
            }
            "queue_update" => {
                let count = |name: &str| event[name].as_array().map_or(0, Vec::len);
                match count("steering") + count("followUp") {
                    0 => {}
                    1 => items.push(Item::Notice("a prompt waits for its turn".into())),
                    count => items.push(Item::Notice(format!("{count} prompts wait"))),
                }
            }
            "compaction_start" => items.push(Item::Notice("compacting its history".into())),
            "compaction_end" => items.push(compacted(event)),
            "auto_retry_start" => items.push(Item::Notice(retry(event))),
            "auto_retry_end" if event["success"] == false => {
                items.push(Item::Notice("gives up trying".into()));
            }
            "summarization_retry_scheduled" => {
                items.push(Item::Error(line(&event["errorMessage"])));
                items.push(Item::Notice(retry(event)));
            }
            "extension_ui_request" => self.extension(event, items),
            "extension_error" | "error" => items.push(Item::Error(line(&event["error"]))),
            "response" if event["success"] == false => {
                let (command, error) = (line(&event["command"]), line(&event["error"]));
                items.push(Item::Error(format!("{command}: {error}")));
            }
            "bash_execution_update" => {
                let text = clean::text(event["delta"].as_str().unwrap_or_default());
                items.push(Item::Output(text));
            }
            _ => {}
        }
    }

    fn update(&mut self, part: &Value, items: &mut Vec<Item>) {
        match part["type"].as_str().unwrap_or_default() {
            "text_delta" => self.streams(&part["delta"], Item::Text, items),
            "thinking_delta" => self.streams(&part["delta"], Item::Thinking, items),
            "text_end" | "thinking_end" => items.push(Item::Break),
            _ => {}
        }
    }

    fn message(&mut self, message: &Value, items: &mut Vec<Item>) {
        match message["role"].as_str().unwrap_or_default() {
            "user" => items.push(Item::User(content(&message["content"]))),
            "assistant" => self.said(&message["content"], items),
            _ => {}
        }
        match message["stopReason"].as_str().unwrap_or_default() {
            "error" => items.push(Item::Error(line(&message["errorMessage"]))),
            "aborted" => items.push(Item::Notice("aborted".into())),
            "length" => items.push(Item::Notice("the answer was cut: it was too long".into())),
            _ => {}
        }
    }

    fn extension(&mut self, event: &Value, items: &mut Vec<Item>) {
        let method = event["method"].as_str().unwrap_or_default();
        if !DIALOGUES.contains(&method) {
            if method == "notify" {
                items.push(Item::Notice(line(&event["message"])));
            }
            return;
        }
        let options = event["options"].as_array().map(Vec::as_slice);
        let options: Vec<String> = options
            .unwrap_or_default()
            .iter()
            .map(|option| option.as_str().unwrap_or_default().to_owned())
            .collect();
        let mut text = line(&event["title"]);
        if event["message"].is_string() {
            text.push(' ');
            text.push_str(&line(&event["message"]));
        }
        match method {
            "confirm" => text.push_str(" (y or n)"),
            "select" => {
                for (number, option) in (1..).zip(&options) {
                    text.push_str(&format!("\n{number}: {}", clean::line(option, 100)));
                }
            }
            _ => {}
        }
        let question = Question {
            id: event["id"].as_str().unwrap_or_default().to_owned(),
            method: method.to_owned(),
            text,
            options,
        };
        self.question = Some(question.clone());
        items.push(Item::Question(question));
    }
}

fn compacted(event: &Value) -> Item {
    let result = &event["result"];
    match (
        &event["errorMessage"],
        result["tokensBefore"].as_u64(),
        result["estimatedTokensAfter"].as_u64(),
    ) {
        (error, ..) if !error.is_null() => Item::Error(line(error)),
        (_, Some(before), Some(after)) => Item::Notice(format!(
            "compacted its history: {before} to about {after} tokens"
        )),
        _ if event["aborted"] == true => Item::Notice("compaction aborted".into()),
        _ => Item::Notice("compacted its history".into()),
    }
}

fn retry(event: &Value) -> String {
    let number = |name: &str| event[name].as_u64().unwrap_or(0);
    format!(
        "tries again in {} ms ({} of {})",
        number("delayMs"),
        number("attempt"),
        number("maxAttempts")
    )
}
