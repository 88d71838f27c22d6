//! The prompt of an editor as text.

use agent_client_protocol::Error;
use agent_client_protocol::v1::schema::{ContentBlock, EmbeddedResourceResource};

/// Returns the prompt for the agent. The text of embedded files follows the address of each.
pub(super) fn prompt_text(blocks: &[ContentBlock]) -> Result<String, Error> {
    let mut text = String::new();
    for block in blocks {
        if !text.is_empty() {
            text.push('\n');
        }
        match block {
            ContentBlock::Text(block) => text.push_str(&block.text),
            ContentBlock::ResourceLink(link) => text.push_str(path(&link.uri)),
            ContentBlock::Resource(embedded) => match &embedded.resource {
                EmbeddedResourceResource::TextResourceContents(file) => {
                    text.push_str(&format!("{}:\n{}", path(&file.uri), file.text));
                }
                _ => return Err(unsupported("binary files")),
            },
            ContentBlock::Image(_) => return Err(unsupported("images")),
            _ => return Err(unsupported("this content")),
        }
    }
    if text.trim().is_empty() {
        return Err(Error::invalid_params().data("the prompt is empty"));
    }
    Ok(text)
}

/// Returns the path of a file's URI, and other URIs as they are.
fn path(uri: &str) -> &str {
    uri.strip_prefix("file://").unwrap_or(uri)
}

fn unsupported(content: &str) -> Error {
    Error::invalid_params().data(format!(
        "colibri acp does not pass on {content}; send text and text files"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prompt_contains_text_and_embedded_files() {
        let blocks: Vec<ContentBlock> = serde_json::from_value(json!([
            {"type": "text", "text": "explain"},
            {"type": "resource_link", "uri": "file:///w/a.rs", "name": "a.rs"},
            {"type": "resource", "resource": {"uri": "file:///w/b.rs", "text": "fn b() {}"}},
        ]))
        .unwrap();
        let text = prompt_text(&blocks).unwrap();
        assert_eq!(text, "explain\n/w/a.rs\n/w/b.rs:\nfn b() {}");
        for refused in [
            json!([{"type": "image", "data": "", "mimeType": "image/png"}]),
            json!([{"type": "resource", "resource": {"uri": "file:///x", "blob": "AA=="}}]),
            json!([{"type": "text", "text": " "}]),
        ] {
            let blocks: Vec<ContentBlock> = serde_json::from_value(refused).unwrap();
            assert!(prompt_text(&blocks).is_err());
        }
    }
}
