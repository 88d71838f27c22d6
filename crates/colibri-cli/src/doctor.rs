//! `colibri doctor`: the findings of the daemon, or of one started here if none is running.

use std::io;
use std::time::Duration;

use colibri_client::{ClientError, DoctorResult, Finding, FindingStatus};

use colibri_config::ConfigFile;

use crate::args::Global;
use crate::connect::{connect_existing, lookup};
use crate::error::CliError;
use crate::explain::preparer;
use crate::{output, tables};

/// Longer than the daemon's own looks can take.
const PATIENCE: Duration = Duration::from_secs(45);

/// Prints the findings; the exit code is 1 where one is a failure.
pub(crate) async fn doctor(global: &Global, json: bool) -> Result<u8, CliError> {
    let findings = match ask(global).await {
        Ok(findings) => findings,
        Err(CliError::Client(ClientError::NoDaemon { .. })) => {
            output::message("no daemon is running; these are the findings for one started here");
            look(global).await?
        }
        Err(CliError::Settings(_)) => look(global).await?,
        Err(why) => {
            let fix = "find the process that has the socket, e.g. with fuser(1); the other findings are without the daemon";
            let mut findings = vec![Finding::fail(why.message(), fix)];
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
        output::print(tables::findings(&findings).as_bytes())?;
    }
    Ok(u8::from(failed))
}

async fn ask(global: &Global) -> Result<Vec<Finding>, CliError> {
    let answer = async { Ok(connect_existing(global).await?.doctor().await?.findings) };
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer,
        Err(_) => {
            let silent = format!("no answer within {PATIENCE:?}");
            let silent = io::Error::new(io::ErrorKind::TimedOut, silent);
            Err(CliError::io("cannot ask the daemon")(silent))
        }
    }
}

/// Settings that cannot be used are a finding too, and the only one: all else hangs on them.
async fn look(global: &Global) -> Result<Vec<Finding>, CliError> {
    // All of the file counts: a daemon does not start with a mistake in a profile either.
    let file = ConfigFile::read(None, lookup).map_err(CliError::from);
    let (preparer, installation) = match file.and_then(|_| preparer(global)) {
        Ok(found) => found,
        Err(error) => {
            let fix = "correct the setting; flags override the environment, and the environment overrides colibri.toml";
            return Ok(vec![Finding::fail(error.message(), fix)]);
        }
    };
    Ok(preparer.preflight(&installation).await)
}
