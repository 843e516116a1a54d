"""Pages in headless Chromium: what a script finds in them, and screenshots."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# The page stands in a frame, because windows of Chromium are not as narrow as a phone.
FRAME = """<!doctype html><body style="margin:0">
<iframe id="frame" style="border:0;width:{width}px;height:{height}px"></iframe>
<script>
const frame = document.getElementById("frame");
frame.onload = () => setTimeout(() => {{
  const {{ contentWindow: page }} = frame;
  let found = null, failure = "";
  try {{ found = page.eval({script}); }} catch (error) {{ failure = String(error); }}
  const answer = document.createElement("pre");
  answer.id = "answer";
  answer.textContent = JSON.stringify({{ found, failures: [...page.failures, failure] }});
  document.body.append(answer);
}}, 500);
frame.srcdoc = {page};
</script></body>"""
LISTEN = (
    "<script>window.failures = []; onerror = text => { failures.push(String(text)); };</script>"
)


def look(
    page: Path, script: str, width: int = 1280, height: int = 900, *, dark: bool = False
) -> Any:
    """Return what a script, a JavaScript expression, gives in a page; a screenshot stays beside it.

    Raises:
        AssertionError: a script of the page fails, or this one.
    """
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"(?s)<meta http-equiv=.*?>\n", "", text, count=1)  # it forbids `eval`
    text = text.replace("<title>", LISTEN + "<title>", 1)
    quoted = [json.dumps(part).replace("<", "\\u003c") for part in (script, text)]
    framed = page.with_name(f"framed_{width}{'_dark' if dark else ''}.html")
    framed.write_text(
        FRAME.format(width=width, height=height, script=quoted[0], page=quoted[1]),
        encoding="utf-8",
    )
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--disable-background-networking", "--disable-dev-shm-usage"),
        f"--user-data-dir={page.parent / 'chromium'}",
        f"--window-size={max(width, 500)},{height}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--virtual-time-budget=3000",
    ]
    shot = f"--screenshot={framed.with_suffix('.png')}"
    done = subprocess.run(
        [*command, shot, "--dump-dom", framed.as_uri()], capture_output=True, timeout=120
    )
    answer = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout.decode("utf-8", "replace"))
    assert answer, done.stderr.decode("utf-8", "replace")[-2000:]
    told = json.loads(html.unescape(answer.group(1)))
    assert not any(told["failures"]), told["failures"]
    return told["found"]
