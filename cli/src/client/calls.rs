//! One method per call with one reply.

use holdfast_proto::v1;

use super::{Client, MESSAGE_BYTES_MAX};
use crate::error::CliResult;

macro_rules! calls {
    ($($module:ident::$service:ident { $($(#[$doc:meta])* $name:ident = $method:ident($request:ident) -> $response:ident;)* })*) => {
        impl Client {$($(
            $(#[$doc])*
            ///
            /// # Errors
            /// What the controller answered, or that it could not be reached or did not answer in time.
            pub(crate) async fn $name(&self, request: v1::$request) -> CliResult<v1::$response> {
                let mut service = v1::$module::$service::new(self.channel.clone())
                    .max_decoding_message_size(MESSAGE_BYTES_MAX);
                let mut request = tonic::Request::new(request);
                request.set_timeout(self.call_timeout);
                match tokio::time::timeout(self.call_timeout, service.$method(request)).await {
                    Ok(Ok(response)) => Ok(response.into_inner()),
                    Ok(Err(status)) => Err(self.error(&status)),
                    Err(_) => Err(self.overdue()),
                }
            }
        )*)*}
    };
}

calls! {
    alert_service_client::AlertServiceClient {
        /// What is wrong.
        list_alerts = list(ListAlertsRequest) -> ListAlertsResponse;
        /// One alert.
        show_alert = show(ShowAlertRequest) -> ShowAlertResponse;
        /// Says that somebody has seen it.
        acknowledge_alert = acknowledge(AcknowledgeRequest) -> AcknowledgeResponse;
        /// Keeps alerts quiet.
        silence_alerts = silence(SilenceRequest) -> SilenceResponse;
        /// Ends a silence.
        unsilence_alerts = unsilence(UnsilenceRequest) -> UnsilenceResponse;
    }
    notify_service_client::NotifyServiceClient {
        /// Channels, and how they do.
        list_channels = list(ListChannelsRequest) -> ListChannelsResponse;
        /// Sends a message that says that nothing is wrong.
        test_channel = test(TestChannelRequest) -> TestChannelResponse;
        /// What a channel would be sent.
        preview_message = preview(PreviewRequest) -> PreviewResponse;
        /// What has become of messages.
        notify_history = history(HistoryRequest) -> HistoryResponse;
    }
    policy_service_client::PolicyServiceClient {
        /// What a policy would keep and remove.
        simulate_policy = simulate(SimulateRequest) -> SimulateResponse;
        /// Removes what policies do not keep.
        clean_up = clean_up(CleanUpRequest) -> CleanUpResponse;
        /// The runs that begin next by themselves.
        next_runs = next(NextRunsRequest) -> NextRunsResponse;
        /// Keeps the backups of a source from beginning by themselves.
        pause_source = pause(PauseSourceRequest) -> PauseSourceResponse;
        /// Ends a pause.
        resume_source = resume(ResumeSourceRequest) -> ResumeSourceResponse;
    }
    report_service_client::ReportServiceClient {
        /// A report of the time up to now.
        get_report = get(GetReportRequest) -> GetReportResponse;
        /// Sends a report by a channel.
        send_report = send(SendReportRequest) -> SendReportResponse;
    }
    run_service_client::RunServiceClient {
        /// What a backup would do.
        plan_backup = plan_backup(PlanBackupRequest) -> PlanBackupResponse;
        /// Queues runs.
        start_runs = start(StartRequest) -> StartResponse;
        /// One run.
        get_run = get(GetRunRequest) -> GetRunResponse;
        /// A page of runs.
        list_runs = list(ListRunsRequest) -> ListRunsResponse;
        /// Asks a run to stop.
        cancel_run = cancel(CancelRunRequest) -> CancelRunResponse;
        /// Queues the same again.
        retry_run = retry(RetryRunRequest) -> RetryRunResponse;
    }
    restore_service_client::RestoreServiceClient {
        /// Finds out what a restore would do.
        plan_restore = plan(PlanRestoreRequest) -> PlanRestoreResponse;
        /// Queues the restore of a plan.
        run_restore = run(RunRestoreRequest) -> RunRestoreResponse;
        /// Queues the swap of a finished restore.
        promote_restore = promote(PromoteRestoreRequest) -> PromoteRestoreResponse;
        /// Queues the removal of what a restore made or kept.
        discard_restore = discard(DiscardRestoreRequest) -> DiscardRestoreResponse;
    }
    snapshot_service_client::SnapshotServiceClient {
        /// A page of snapshots.
        list_snapshots = list(ListSnapshotsRequest) -> ListSnapshotsResponse;
        /// One snapshot with its manifest.
        show_snapshot = show(ShowSnapshotRequest) -> ShowSnapshotResponse;
        /// Places a hold.
        hold_snapshot = hold(HoldRequest) -> HoldResponse;
        /// Removes snapshots.
        forget_snapshots = forget(ForgetSnapshotsRequest) -> ForgetSnapshotsResponse;
        /// Ends a hold.
        release_snapshot = release(ReleaseRequest) -> ReleaseResponse;
    }
    repository_service_client::RepositoryServiceClient {
        /// Creates or opens a repository.
        init_repository = init(InitRepositoryRequest) -> InitRepositoryResponse;
        /// Repositories with their state.
        list_repositories = list(ListRepositoriesRequest) -> ListRepositoriesResponse;
        /// What is stored, by source.
        repository_usage = usage(RepositoryUsageRequest) -> RepositoryUsageResponse;
        /// Plans a prune, or queues one.
        prune_repository = prune(PruneRepositoryRequest) -> PruneRepositoryResponse;
        /// Plans a copy of snapshots, or queues one.
        copy_snapshots = copy(CopySnapshotsRequest) -> CopySnapshotsResponse;
    }
    fleet_service_client::FleetServiceClient {
        /// Checks fleet files.
        validate_fleet = validate(ValidateRequest) -> ValidateResponse;
        /// What applying fleet files would change.
        diff_fleet = diff(DiffRequest) -> DiffResponse;
        /// Applies fleet files.
        apply_fleet = apply(ApplyRequest) -> ApplyResponse;
        /// The fleet as YAML.
        export_fleet = export(ExportRequest) -> ExportResponse;
        /// Definitions of a kind.
        list_definitions = list_definitions(ListDefinitionsRequest) -> ListDefinitionsResponse;
        /// Removes a definition.
        delete_definition = delete_definition(DeleteDefinitionRequest) -> DeleteDefinitionResponse;
        /// Databases that agents see on their hosts.
        discover = discover(DiscoverRequest) -> DiscoverResponse;
        /// Reaches a source.
        test_source = test_source(TestSourceRequest) -> TestSourceResponse;
        /// Has the runs of a source write debug lines for a while.
        debug_source = debug_source(DebugSourceRequest) -> DebugSourceResponse;
        /// Makes a token for a new agent.
        create_enrollment_token = create_enrollment_token(CreateEnrollmentTokenRequest) -> CreateEnrollmentTokenResponse;
        /// Enrolled agents.
        list_agents = list_agents(ListAgentsRequest) -> ListAgentsResponse;
        /// Revokes an agent.
        revoke_agent = revoke_agent(RevokeAgentRequest) -> RevokeAgentResponse;
    }
    status_service_client::StatusServiceClient {
        /// The state of the fleet.
        fleet_status = fleet(FleetStatusRequest) -> FleetStatusResponse;
        /// Findings.
        doctor = doctor(DoctorRequest) -> DoctorResponse;
        /// Who the caller is.
        whoami = whoami(WhoamiRequest) -> WhoamiResponse;
    }
}
