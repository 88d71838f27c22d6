//! Runs the scripted model until standard input ends, and prints its URL. The arguments are the commands of its script.

use std::io::{Read, Write};

use colibri_tests::scripted_model::ScriptedModel;

fn main() -> std::io::Result<()> {
    let commands: Vec<String> = std::env::args().skip(1).collect();
    let model = ScriptedModel::with_script(&commands);
    writeln!(std::io::stdout(), "{}", model.url())?;
    std::io::stdin().read_to_end(&mut Vec::new()).map(drop)
}
