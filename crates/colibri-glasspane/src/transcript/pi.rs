//! Transcript of pi's events.

use serde_json::Value;

use super::summary::content_text;
use super::{Transcript, TranscriptItem, text_line};
use crate::events::string;
use crate::question::{Question, QuestionMethod};
use crate::sanitize::{sanitize_line, sanitize_text};

/// Maximum length of an option of a selection, in characters.
const MAX_OPTION_CHARS: usize = 100;

impl Transcript {
    pub(super) fn push_pi_event(&mut self, event: &Value) {
        match event["type"].as_str().unwrap_or_default() {
            "message_start" if event["message"]["role"] == "assistant" => self.streamed = false,
            "message_update" => self.push_update(&event["assistantMessageEvent"]),
            "message_end" => self.push_message(&event["message"]),
            "tool_execution_start" => {
                self.push_tool_call(&event["toolCallId"], &event["toolName"], &event["args"]);
            }
            "tool_execution_end" => {
                let content = &event["result"]["content"];
                self.push_tool_result(&event["toolCallId"], content, &event["isError"]);
            }
            "queue_update" => {
                let count = |name: &str| event[name].as_array().map_or(0, Vec::len);
                match count("steering") + count("followUp") {
                    0 => {}
                    1 => self.notice("1 prompt queued"),
                    count => self.notice(format!("{count} prompts queued")),
                }
            }
            "compaction_start" => self.notice("compacting its history"),
            "compaction_end" => self.push_compaction(event),
            "auto_retry_start" => self.push_retry(event),
            "auto_retry_end" if event["success"] == false => self.notice("stops retrying"),
            "summarization_retry_scheduled" => {
                self.error(&event["errorMessage"]);
                self.push_retry(event);
            }
            "extension_ui_request" => self.push_extension_request(event),
            "extension_error" | "error" => self.error(&event["error"]),
            "response" if event["success"] == false => self.push_refusal(event),
            "bash_execution_update" => {
                let text = sanitize_text(event["delta"].as_str().unwrap_or_default());
                self.items.push(TranscriptItem::Output(text));
            }
            _ => {}
        }
    }

    fn push_update(&mut self, part: &Value) {
        match part["type"].as_str().unwrap_or_default() {
            "text_delta" => self.push_fragment(&part["delta"], TranscriptItem::Text),
            "thinking_delta" => self.push_fragment(&part["delta"], TranscriptItem::Thinking),
            "text_end" | "thinking_end" => self.items.push(TranscriptItem::BlockEnd),
            _ => {}
        }
    }

    fn push_message(&mut self, message: &Value) {
        let content = &message["content"];
        match message["role"].as_str().unwrap_or_default() {
            "user" => self.items.push(TranscriptItem::User(content_text(content))),
            "assistant" => self.end_message(content),
            _ => {}
        }
        self.push_stop(&message["stopReason"], &message["errorMessage"]);
    }

    fn push_extension_request(&mut self, event: &Value) {
        let Some(method) = QuestionMethod::from_name(&event["method"]) else {
            if event["method"] == "notify" {
                self.notice(text_line(&event["message"]));
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
        self.items.push(TranscriptItem::Question(question));
    }

    fn push_compaction(&mut self, event: &Value) {
        if !event["errorMessage"].is_null() {
            return self.error(&event["errorMessage"]);
        }
        let tokens = |name: &str| event["result"][name].as_u64();
        match tokens("tokensBefore").zip(tokens("estimatedTokensAfter")) {
            Some((before, after)) => self.notice(format!(
                "compacted its history: {before} to about {after} tokens"
            )),
            None if event["aborted"] == true => self.notice("compaction aborted"),
            None => self.notice("compacted its history"),
        }
    }

    fn push_retry(&mut self, event: &Value) {
        let number = |name: &str| event[name].as_u64().unwrap_or(0);
        self.notice(format!(
            "retries in {} ms ({} of {})",
            number("delayMs"),
            number("attempt"),
            number("maxAttempts")
        ));
    }
}
