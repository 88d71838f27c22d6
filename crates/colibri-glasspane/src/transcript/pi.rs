//! Transcript of pi's events.

use serde_json::Value;

use super::summary::content_text;
use super::{Transcript, TranscriptItem, refused_command_item, stop_item, text_line};
use crate::events::string;
use crate::question::{Question, QuestionMethod};
use crate::sanitize::{sanitize_line, sanitize_text};

/// Maximum length of an option of a selection, in characters.
const MAX_OPTION_CHARS: usize = 100;

impl Transcript {
    pub(super) fn push_pi_event(&mut self, event: &Value, items: &mut Vec<TranscriptItem>) {
        let notice = |text: &str| TranscriptItem::Notice(text.to_owned());
        match event["type"].as_str().unwrap_or_default() {
            "message_start" if event["message"]["role"] == "assistant" => self.streamed = false,
            "message_update" => self.push_update(&event["assistantMessageEvent"], items),
            "message_end" => self.push_message(&event["message"], items),
            "tool_execution_start" => {
                items.push(self.tool_call(
                    &event["toolCallId"],
                    &event["toolName"],
                    &event["args"],
                ));
            }
            "tool_execution_end" => {
                let content = &event["result"]["content"];
                items.push(self.tool_result(&event["toolCallId"], content, &event["isError"]));
            }
            "queue_update" => {
                let count = |name: &str| event[name].as_array().map_or(0, Vec::len);
                match count("steering") + count("followUp") {
                    0 => {}
                    1 => items.push(notice("1 prompt queued")),
                    count => items.push(notice(&format!("{count} prompts queued"))),
                }
            }
            "compaction_start" => items.push(notice("compacting its history")),
            "compaction_end" => items.push(compaction_item(event)),
            "auto_retry_start" => items.push(retry_item(event)),
            "auto_retry_end" if event["success"] == false => items.push(notice("stops retrying")),
            "summarization_retry_scheduled" => {
                items.push(TranscriptItem::Error(text_line(&event["errorMessage"])));
                items.push(retry_item(event));
            }
            "extension_ui_request" => self.push_extension_request(event, items),
            "extension_error" | "error" => {
                items.push(TranscriptItem::Error(text_line(&event["error"])));
            }
            "response" if event["success"] == false => items.push(refused_command_item(event)),
            "bash_execution_update" => {
                let text = sanitize_text(event["delta"].as_str().unwrap_or_default());
                items.push(TranscriptItem::Output(text));
            }
            _ => {}
        }
    }

    fn push_update(&mut self, part: &Value, items: &mut Vec<TranscriptItem>) {
        match part["type"].as_str().unwrap_or_default() {
            "text_delta" => self.push_fragment(&part["delta"], TranscriptItem::Text, items),
            "thinking_delta" => self.push_fragment(&part["delta"], TranscriptItem::Thinking, items),
            "text_end" | "thinking_end" => items.push(TranscriptItem::BlockEnd),
            _ => {}
        }
    }

    fn push_message(&mut self, message: &Value, items: &mut Vec<TranscriptItem>) {
        match message["role"].as_str().unwrap_or_default() {
            "user" => items.push(TranscriptItem::User(content_text(&message["content"]))),
            "assistant" => self.end_message(&message["content"], items),
            _ => {}
        }
        items.extend(stop_item(&message["stopReason"], &message["errorMessage"]));
    }

    fn push_extension_request(&mut self, event: &Value, items: &mut Vec<TranscriptItem>) {
        let Some(method) = QuestionMethod::from_name(&event["method"]) else {
            if event["method"] == "notify" {
                items.push(TranscriptItem::Notice(text_line(&event["message"])));
            }
            return;
        };
        let options = event["options"].as_array().into_iter().flatten();
        let options: Vec<String> = options.map(string).collect();
        let mut text = text_line(&event["title"]);
        if event["message"].is_string() {
            text.push(' ');
            text.push_str(&text_line(&event["message"]));
        }
        match method {
            QuestionMethod::Confirm => text.push_str(" (y or n)"),
            QuestionMethod::Select => {
                for (number, option) in (1..).zip(&options) {
                    let option = sanitize_line(option, MAX_OPTION_CHARS);
                    text.push_str(&format!("\n{number}: {option}"));
                }
            }
            QuestionMethod::Input => {}
        }
        let question = Question {
            id: string(&event["id"]),
            method,
            text,
            options,
        };
        self.open_question = Some(question.clone());
        items.push(TranscriptItem::Question(question));
    }
}

fn compaction_item(event: &Value) -> TranscriptItem {
    let error = &event["errorMessage"];
    let result = &event["result"];
    let tokens = result["tokensBefore"]
        .as_u64()
        .zip(result["estimatedTokensAfter"].as_u64());
    if !error.is_null() {
        return TranscriptItem::Error(text_line(error));
    }
    TranscriptItem::Notice(match tokens {
        Some((before, after)) => {
            format!("compacted its history: {before} to about {after} tokens")
        }
        None if event["aborted"] == true => "compaction aborted".to_owned(),
        None => "compacted its history".to_owned(),
    })
}

fn retry_item(event: &Value) -> TranscriptItem {
    let number = |name: &str| event[name].as_u64().unwrap_or(0);
    TranscriptItem::Notice(format!(
        "retries in {} ms ({} of {})",
        number("delayMs"),
        number("attempt"),
        number("maxAttempts")
    ))
}
