//! Stand-ins for a build without the cargo feature `metrics`. The types have no values: metrics cannot be switched on.

use std::sync::Arc;

use colibri_config::MetricsAddress;
use colibri_proto::Stream;

use super::{LiveSource, MetricsEvent};
use crate::agent::{RegisteredAgent, StreamOffset};

/// Why metrics are not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    #[error(
        "cannot serve metrics: this colibri-daemon was built without them; remove the setting, or build with the cargo feature `metrics`"
    )]
    NotBuilt,
}

pub(crate) enum Metrics {}

impl Metrics {
    pub(crate) fn new(server: &MetricsServer) -> Self {
        match *server {}
    }

    pub(crate) fn set_live_source(&self, _source: LiveSource) {
        match *self {}
    }

    pub(crate) fn record(&self, _event: MetricsEvent<'_>) {
        match *self {}
    }

    pub(crate) fn follow(
        &self,
        _agent: Arc<RegisteredAgent>,
        _from: &[StreamOffset],
    ) -> SubscriberPosition {
        match *self {}
    }
}

pub(crate) enum SubscriberPosition {}

impl SubscriberPosition {
    pub(crate) fn advance(&self, _stream: Stream, _offset: u64) {
        match *self {}
    }
}

pub(crate) enum MetricsServer {}

impl MetricsServer {
    pub(crate) async fn open(_address: &MetricsAddress) -> Result<Self, MetricsError> {
        Err(MetricsError::NotBuilt)
    }

    pub(crate) async fn serve(&self, _metrics: &Arc<Metrics>) {
        match *self {}
    }
}
