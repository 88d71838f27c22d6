//! Line charts with two logarithmic axes, as SVG.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

/// A line of a chart.
pub(crate) struct Series {
    pub(crate) name: String,
    /// Whether the line is thin and its points are hollow, for a second kind of lines.
    pub(crate) is_secondary: bool,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Width and height in pixels.
const SIZE: (u32, u32) = (900, 560);

/// Draws a chart and writes it to a file.
pub(crate) fn plot(path: &Path, title: &str, x: &str, y: &str, lines: &[Series]) -> Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).context("creating the directory for results")?;
    }
    let mut text = String::new();
    draw(&mut text, title, x, y, lines).map_err(|error| anyhow!("drawing: {error}"))?;
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn draw(
    text: &mut String,
    title: &str,
    x: &str,
    y: &str,
    lines: &[Series],
) -> Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let axis_range = |values: Vec<f64>, space_above: f64| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        if low.is_finite() && low > 0.0 {
            low / 1.3..high * space_above
        } else {
            0.1..10.0
        }
    };
    let xs = axis_range(points().map(|point| point.0).collect(), 1.3);
    // The labels are above the lines.
    let ys = axis_range(points().map(|point| point.1).collect(), 100.0);
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(xs.log_scale(), ys.log_scale())?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&|value| format!("{value}"))
        .y_label_formatter(&|value| format!("{value}"))
        .light_line_style(BLACK.mix(0.06))
        .draw()?;
    let colours = lines.len().div_ceil(2).max(1);
    for (number, line) in lines.iter().enumerate() {
        let color = Palette99::pick(number % colours).to_rgba();
        let fill = move || match line.is_secondary {
            true => color.stroke_width(1),
            false => color.filled(),
        };
        chart
            .draw_series(LineSeries::new(
                line.points.iter().copied(),
                color.stroke_width(if line.is_secondary { 1 } else { 2 }),
            ))?
            .label(&line.name)
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, fill()));
        let marks = line.points.iter();
        chart.draw_series(marks.map(|point| Circle::new(*point, 4, fill())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    drop(chart);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plot_draws_named_lines_and_accepts_empty_series() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/plot.svg");
        let line = |name: &str, points: &[(f64, f64)]| Series {
            name: name.to_owned(),
            is_secondary: false,
            points: points.to_vec(),
        };
        plot(&path, "Cost", "agents", "ms", &[]).unwrap();
        let lines = [
            line("one <&>", &[(10.0, 1.0), (100.0, 9.0)]),
            line("two", &[(10.0, 3.0)]),
        ];
        plot(&path, "Cost", "agents", "ms", &lines).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for part in ["<svg", "one &lt;&amp;&gt;", "two", "agents", "<polyline"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
