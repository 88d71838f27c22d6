//! `colibri doctor`: what the daemon finds, or where there is none, what one started here would find.

use std::io;
use std::time::Duration;

use colibri_client::{ClientError, DoctorResult, Finding, FindingStatus};

use colibri_spawner::file::ConfigFile;

use crate::args::Global;
use crate::connect::{connect_existing, lookup};
use crate::error::CliError;
use crate::explain::spawner;
use crate::output;

/// Longer than the daemon's own looks can take.
const PATIENCE: Duration = Duration::from_secs(45);

/// Prints the findings; the exit code is 1 where one is a failure.
pub(crate) async fn doctor(global: &Global, json: bool) -> Result<u8, CliError> {
    let findings = match ask(global).await {
        Ok(findings) => findings,
        Err(CliError::Client(ClientError::NoDaemon { .. })) => {
            output::note("no daemon listens; this is what one started here would find");
            look(global).await?
        }
        Err(CliError::Settings(_)) => look(global).await?,
        Err(why) => {
            let mend = "see which process has the socket; what follows was found without it";
            let mut findings = vec![fail(why.to_string(), mend)];
            findings.extend(look(global).await?);
            findings
        }
    };
    let failed = findings
        .iter()
        .any(|finding| finding.status == FindingStatus::Fail);
    if json {
        output::print_json(&DoctorResult { findings })?;
    } else {
        output::print(output::findings(&findings).as_bytes())?;
    }
    Ok(u8::from(failed))
}

async fn ask(global: &Global) -> Result<Vec<Finding>, CliError> {
    let answer = async { Ok(connect_existing(global).await?.doctor().await?.findings) };
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer,
        Err(_) => {
            let silent = format!("it does not answer within {PATIENCE:?}");
            let silent = io::Error::new(io::ErrorKind::TimedOut, silent);
            Err(CliError::io("asking the daemon")(silent))
        }
    }
}

/// Settings that cannot be used are a finding too, and the only one: all else hangs on them.
async fn look(global: &Global) -> Result<Vec<Finding>, CliError> {
    // All of the file counts: a daemon does not start with a mistake in a profile either.
    let file = ConfigFile::read(None, lookup).map_err(CliError::from);
    let spawner = match file.and_then(|_| spawner(global)) {
        Ok(spawner) => spawner,
        Err(error) => {
            let mend = "mend the setting; flags win over the environment, the environment over colibri.toml";
            return Ok(vec![fail(error.to_string(), mend)]);
        }
    };
    let found = spawner.preflight().await;
    serde_json::from_value(serde_json::json!(found))
        .map_err(|error| CliError::io("reading findings")(error.into()))
}

fn fail(what: String, mend: &str) -> Finding {
    Finding {
        status: FindingStatus::Fail,
        what,
        mend: Some(mend.to_owned()),
    }
}
