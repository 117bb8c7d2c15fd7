//! `holdfast notify …`

use holdfast_proto::v1;

use crate::app::App;
use crate::args::alert::{NotifyCommand, NotifyHistoryArgs, NotifyPreviewArgs};
use crate::error::CliResult;
use crate::exit_status::ExitStatus;
use crate::output::text::plain;
use crate::views::alert::{ChannelView, DeliveryView};

pub(super) async fn notify(app: &mut App, command: NotifyCommand) -> CliResult {
    match command {
        NotifyCommand::List => list(app).await,
        NotifyCommand::Test(args) => test(app, args.channel).await,
        NotifyCommand::Preview(args) => preview(app, args).await,
        NotifyCommand::History(args) => history(app, args).await,
    }
}

async fn list(app: &mut App) -> CliResult {
    let client = app.connect().await?;
    let reply = client.list_channels(v1::ListChannelsRequest {}).await?;
    let channels: Vec<ChannelView> = reply.channels.into_iter().map(ChannelView::from).collect();
    app.output.list(
        &channels,
        "no channel is declared: nobody is told when something is wrong
  next   holdfast export > fleet.yaml    # add notifications: there, then holdfast apply -f fleet.yaml",
    )?;
    if let Some(first) = channels.first() {
        app.output.next(&[format!("holdfast notify test {}", first.name)]);
    }
    Ok(ExitStatus::Ok)
}

async fn test(app: &mut App, channel: String) -> CliResult {
    let client = app.connect().await?;
    let reply = client.test_channel(v1::TestChannelRequest { channel: channel.clone() }).await?;
    app.output.note(&format!("channel {channel} delivered it: {}", plain(&reply.answer)));
    app.output.next(&[format!("holdfast notify history {channel}")]);
    Ok(ExitStatus::Ok)
}

async fn preview(app: &mut App, args: NotifyPreviewArgs) -> CliResult {
    let client = app.connect().await?;
    let request = v1::PreviewRequest {
        channel: args.channel.clone(),
        alert: args.alert,
        event: args.event.as_str().to_owned(),
    };
    let reply = client.preview_message(request).await?;
    // As it would be sent, line by line; what could steer a terminal is made harmless.
    let lines: Vec<String> = reply.body.lines().map(plain).collect();
    app.output.write(&format!("{}\n", lines.join("\n")))?;
    app.output.next(&[format!("holdfast notify test {}", args.channel)]);
    Ok(ExitStatus::Ok)
}

async fn history(app: &mut App, args: NotifyHistoryArgs) -> CliResult {
    let client = app.connect().await?;
    let request = v1::HistoryRequest { channel: args.channel.clone().unwrap_or_default(), limit: args.limit };
    let reply = client.notify_history(request).await?;
    let deliveries: Vec<DeliveryView> = reply.deliveries.into_iter().map(DeliveryView::from).collect();
    app.output.list(&deliveries, "nothing was sent yet")?;
    Ok(ExitStatus::Ok)
}
