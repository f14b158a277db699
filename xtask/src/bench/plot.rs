//! The plots of `docs/benchmarks.md`, as SVG. Pure: figures in, text out.

use std::fmt::Write;

use super::{Figure, contender::BESIDE, scale::Point};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 380.0;
/// Room for labels: left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (62.0, 170.0, 46.0, 52.0);
/// A colour for each contender, told apart without red and green.
const COLOURS: &[(&str, &str)] = &[
    ("mizzen", "#0072b2"),
    ("nftables", "#e69f00"),
    ("iptables", "#cc79a7"),
    ("kube-proxy", "#56b4e9"),
    ("bare", "#555555"),
    ("direct", "#999999"),
    ("plain", "#555555"),
    ("unbound", "#555555"),
    ("dnsmasq", "#e69f00"),
    ("named", "#cc79a7"),
    ("knot", "#56b4e9"),
    ("coredns", "#d55e00"),
];

/// A text that grows by elements.
struct Drawing(String);

impl Drawing {
    fn new(height: f64, title: &str) -> Self {
        let mut drawing = Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        ));
        drawing.text((WIDTH / 2.0, 22.0), "middle", "#000000", title);
        drawing
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a String can't fail.
        let _ = self.0.write_fmt(element);
        self.0.push('\n');
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.add(format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" \
             stroke=\"{colour}\" stroke-width=\"{width}\"/>"
        ));
    }

    fn text(&mut self, at: (f64, f64), anchor: &str, colour: &str, text: &str) {
        let (x, y) = at;
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        self.add(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>"
        ));
    }

    fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

fn colour(label: &str) -> &'static str {
    COLOURS.iter().find(|(name, _)| label.starts_with(name)).map_or("#009e73", |(_, colour)| colour)
}

/// A round number of which a handful fit below `largest`.
fn step(largest: f64) -> f64 {
    let rough = (largest / 5.0).max(f64::MIN_POSITIVE);
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|n| *n >= rough).unwrap_or(power)
}

/// Median latency of a connection over the number of services, whose axis is logarithmic.
pub fn latency(points: &[Point]) -> String {
    let mut drawing = Drawing::new(HEIGHT, "Connect, a byte there and back, reset: median latency");
    let largest_size = points.iter().map(|point| f64::from(point.size)).fold(10.0, f64::max);
    let largest = points.iter().map(|p| p.p50_us + p.spread).fold(1.0, f64::max) * 1.1;
    let (left, right, top, bottom) = MARGIN;
    let x = |size: f64| left + size.log10() / largest_size.log10() * (WIDTH - left - right);
    let y = |us: f64| HEIGHT - bottom - us / largest * (HEIGHT - top - bottom);
    let mut tick = 0.0;
    while tick <= largest {
        drawing.line((left, y(tick)), (WIDTH - right, y(tick)), "#dddddd", 1.0);
        drawing.text((left - 8.0, y(tick) + 4.0), "end", "#000000", &format!("{tick}"));
        tick += step(largest);
    }
    let mut sizes: Vec<u32> = points.iter().map(|p| p.size).filter(|size| *size > 0).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for size in sizes {
        let at = x(f64::from(size));
        drawing.line((at, y(0.0)), (at, y(0.0) + 5.0), "#000000", 1.0);
        drawing.text((at, y(0.0) + 19.0), "middle", "#000000", &size.to_string());
    }
    drawing.text(((left + WIDTH - right) / 2.0, HEIGHT - 10.0), "middle", "#000000", "services");
    drawing.text((left - 8.0, top - 10.0), "end", "#000000", "us");

    let mut labels: Vec<&str> = points.iter().map(|point| point.label.as_str()).collect();
    labels.sort_unstable();
    labels.dedup();
    for label in labels.iter().filter(|label| !label.starts_with(BESIDE)) {
        let mut curve: Vec<&Point> = points.iter().filter(|p| p.label == **label).collect();
        curve.sort_by_key(|point| point.size);
        draw_curve(&mut drawing, &curve, &x, &y);
    }
    drawing.finish()
}

/// A curve with its whiskers and its name; a bare node's is one level line.
fn draw_curve(
    drawing: &mut Drawing,
    curve: &[&Point],
    x: &impl Fn(f64) -> f64,
    y: &impl Fn(f64) -> f64,
) {
    let (Some(first), Some(last)) = (curve.first(), curve.last()) else { return };
    let colour = colour(&first.label);
    let (left, right, ..) = MARGIN;
    if first.size == 0 {
        let level = y(first.p50_us);
        drawing.line((left, level), (WIDTH - right, level), colour, 1.0);
        drawing.text((WIDTH - right + 8.0, level + 4.0), "start", colour, &first.label);
        return;
    }
    for pair in curve.windows(2) {
        let at = |point: &Point| (x(f64::from(point.size)), y(point.p50_us));
        drawing.line(at(pair[0]), at(pair[1]), colour, 2.0);
    }
    for point in curve {
        let at = x(f64::from(point.size));
        let (low, high) = (point.p50_us - point.spread, point.p50_us + point.spread);
        drawing.line((at, y(low)), (at, y(high)), colour, 2.0);
        let level = y(point.p50_us);
        drawing.add(format_args!(
            "<circle cx=\"{at:.1}\" cy=\"{level:.1}\" r=\"3.5\" fill=\"{colour}\"/>"
        ));
    }
    let end = (x(f64::from(last.size)) + 8.0, y(last.p50_us) - 6.0);
    drawing.text(end, "start", colour, &last.label);
}

/// Ratios as bars with their spread; a dark mark where one must come to.
pub fn bars(title: &str, figures: &[&Figure]) -> String {
    const ROW: f64 = 22.0;
    const LEFT: f64 = 330.0;
    const RIGHT: f64 = 70.0;
    const TOP: f64 = 40.0;
    #[expect(clippy::cast_precision_loss, reason = "a page of bars")]
    let height = TOP + ROW * figures.len() as f64 + 14.0;
    let mut drawing = Drawing::new(height, title);
    let reach = |figure: &&Figure| {
        (figure.value + figure.spread).max(figure.bar.map_or(0.0, |bar| bar.bound))
    };
    let largest = figures.iter().map(reach).fold(1.0, f64::max) * 1.02;
    let x = |value: f64| LEFT + value.max(0.0) / largest * (WIDTH - LEFT - RIGHT);
    let one = x(1.0);
    drawing.line((one, TOP - 6.0), (one, height - 10.0), "#bbbbbb", 1.0);
    let mut y = TOP;
    for figure in figures {
        let Figure { name, contender, value, spread, .. } = figure;
        let (middle, width) = (y + ROW / 2.0 - 2.0, x(*value) - LEFT);
        drawing.text((LEFT - 8.0, middle + 4.0), "end", "#000000", &format!("{name}: {contender}"));
        let colour = colour(contender);
        drawing.add(format_args!(
            "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" \
             fill=\"{colour}\" fill-opacity=\"0.75\"/>",
            ROW - 5.0
        ));
        let whisker = (x(value - spread), x(value + spread));
        drawing.line((whisker.0, middle), (whisker.1, middle), "#000000", 1.5);
        if let Some(bar) = figure.bar {
            let at = x(bar.bound);
            drawing.line((at, y - 2.0), (at, y + ROW - 3.0), "#000000", 2.5);
        }
        drawing.text(
            (WIDTH - RIGHT + 8.0, middle + 4.0),
            "start",
            "#000000",
            &format!("{value:.3}"),
        );
        y += ROW;
    }
    drawing.finish()
}

#[cfg(test)]
mod tests {
    use super::{super::turns::Summary, *};

    #[test]
    fn ticks_are_round_and_few() {
        for (largest, expected) in [(1.0, 0.2), (48.0, 10.0), (150.0, 50.0), (260.0, 100.0)] {
            assert!((step(largest) - expected).abs() < 1e-9, "{largest}: {}", step(largest));
        }
    }

    #[test]
    fn every_contender_has_a_curve_and_every_figure_a_bar() {
        let point = |label: &str, size, p50_us| Point {
            label: label.into(),
            size,
            p50_us,
            p99_us: 2.0 * p50_us,
            spread: 1.0,
            cpu_us: p50_us,
        };
        let points =
            [point("bare", 0, 20.0), point("mizzen", 1, 21.0), point("mizzen", 30_000, 21.0)];
        let text = latency(&points);
        assert_eq!(text.matches("<circle").count(), 2);
        assert!(text.contains(">30000</text>") && text.contains(">bare</text>"));

        let summary = Summary { value: 0.99, spread: 0.01 };
        let figure = Figure::ratio("a", summary, "b < c", 7).at_least(0.97, 0.0);
        let text = bars("title", &[&figure]);
        assert!(text.contains("b &lt; c") && text.matches("<rect").count() == 2);
        assert!(text.ends_with("</svg>\n"));
    }
}
