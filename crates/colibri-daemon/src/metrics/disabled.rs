//! Stand-ins for a build without the cargo feature `metrics`. The types have no values: metrics cannot be switched on.

use std::sync::Arc;

use colibri_config::MetricsAddress;

use super::{LiveSource, MetricsEvent};
use crate::errors::StartError;

pub(crate) enum Metrics {}

impl Metrics {
    pub(crate) fn record(&self, _event: MetricsEvent<'_>) {
        match *self {}
    }
}

pub(crate) struct MetricsServer {
    pub(crate) metrics: Arc<Metrics>,
}

impl MetricsServer {
    pub(crate) async fn open(_address: &MetricsAddress) -> Result<Self, StartError> {
        Err("cannot serve metrics: this colibri-daemon was built without them; remove the setting, or build with the cargo feature `metrics`".into())
    }

    pub(crate) async fn serve(self, _source: LiveSource) {
        match *self.metrics {}
    }
}
